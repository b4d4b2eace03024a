"""Says whether an environment works: ``verify.py ENGINE FINGERPRINT``; notes it beside the fingerprint.

Runs on the node with the environment's own Python and loads what a model server loads. A failure to import is
what it is about: the last line of the traceback says what is missing.
"""

import importlib.metadata
import sys
from pathlib import Path

import ray
import torch
import vllm
from vllm.platforms import current_platform


def main():
    engine, fingerprint = sys.argv[1:]
    print(f"Python {sys.version.split()[0]}, Ray {ray.__version__}, PyTorch {torch.__version__}", flush=True)
    if engine == "cuda":
        if not torch.cuda.is_available():
            sys.exit("PyTorch sees no GPU although nvidia-smi does. Is the driver R580 or newer?")
        for index in range(torch.cuda.device_count()):
            print(f"GPU {index}: {torch.cuda.get_device_name(index)}")
    elif current_platform.ray_device_key != "GPU":
        sys.exit("vLLM did not load Quarterdeck's platform plugin, without which it refuses Ray on CPUs.")
    Path(sys.prefix, "quarterdeck.lock").write_text(f"{fingerprint} verified\n")
    version = importlib.metadata.version("vllm")
    print(f"vLLM {version} works on {current_platform.device_name} ({Path(vllm.__file__).parent}).")


main()
