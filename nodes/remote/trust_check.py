"""Signs in from this node to others as a program would, without a question: ``["10.0.0.2", …]`` on standard input.

Says ``{"10.0.0.2": "", …}``: nothing where it worked, else ssh's own last words. Standard library, Python 3.8.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OPTIONS = ["-n", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5"]


def places() -> list[str]:
    """ssh asks the password file for the home; where the login has another one, it is told."""
    home = Path.home()
    if str(home) == pwd.getpwuid(os.geteuid()).pw_dir:
        return []
    return ["-F", str(home / ".ssh/config"), "-o", f"UserKnownHostsFile={home}/.ssh/known_hosts"]


def sign_in(name: str) -> str:
    try:
        asked = ["ssh", *places(), *OPTIONS, "--", name, "true"]
        done = subprocess.run(asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=12)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (said[-1][:200] if said else f"status {done.returncode}")


names = json.loads(sys.stdin.read())
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(dict(zip(names, pool.map(sign_in, names)))))  # noqa: B905 - Python 3.10
