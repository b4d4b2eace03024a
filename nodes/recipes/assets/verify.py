"""Says whether an environment works: ``verify.py ENGINE FINGERPRINT STAMP``; notes it in the file STAMP.

Runs on the node with the environment's own Python and loads what a model server loads. A failure to import is
what it is about: the last line of the traceback says what is missing. Beside it lie ``readings.py``, and
``expected.json``: what the first node of the cluster has, where there is one.
"""

import importlib.metadata
import json
import sys
import sysconfig
from pathlib import Path

import ray
import torch
import vllm
from readings import parse_distributions, set_fingerprint
from vllm.platforms import current_platform

PYTHON = ".".join(map(str, sys.version_info[:3]))


def compared():
    """The fingerprint of this environment. Ends the program where the cluster has another one."""
    found = parse_distributions(path.name for path in Path(sysconfig.get_path("purelib")).iterdir())
    expected = json.loads(Path(__file__).with_name("expected.json").read_text())
    if expected and (PYTHON, found) != (expected["python"], expected["distributions"]):
        here, there = set(found), set(expected["distributions"])
        print(f"Here Python {PYTHON}, on {expected['node']} {expected['python']}")
        print("Only here:", ", ".join(sorted(here - there)) or "nothing")
        print(f"Only on {expected['node']}:", ", ".join(sorted(there - here)) or "nothing")
        sys.exit(f"This is not the environment that {expected['node']} has, and a cluster needs the same on each node.")
    return set_fingerprint(PYTHON, found)


def main():
    engine, fingerprint, place = sys.argv[1:]
    print(f"Python {PYTHON}, Ray {ray.__version__}, PyTorch {torch.__version__}", flush=True)
    if engine == "cuda":
        if not torch.cuda.is_available():
            sys.exit("PyTorch sees no GPU although nvidia-smi does. Is the driver R580 or newer?")
        for index in range(torch.cuda.device_count()):
            print(f"GPU {index}: {torch.cuda.get_device_name(index)}")
    elif current_platform.ray_device_key != "GPU":
        sys.exit("vLLM did not load Quarterdeck's platform plugin, without which it refuses Ray on CPUs.")
    name = compared()
    stamp = f"existing-{name}" if fingerprint == "existing" else fingerprint
    Path(place).write_text(f"{stamp} verified\n")
    print(f"Fingerprint {name}")
    version = importlib.metadata.version("vllm")
    print(f"vLLM {version} works on {current_platform.device_name} ({Path(vllm.__file__).parent}).")


main()
