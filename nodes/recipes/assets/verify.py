"""Says whether an environment works: ``verify.py ENGINE FINGERPRINT``; notes it beside the fingerprint.

Runs on the node with the environment's own Python, which is loaded with everything that a model server loads.
"""

import importlib.metadata
import sys
from pathlib import Path

engine, fingerprint = sys.argv[1:]

import ray  # noqa: E402 - a failure to import is what this program is about, and its last line says what is missing
import torch  # noqa: E402
import vllm  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

print(f"Python {sys.version.split()[0]}, Ray {ray.__version__}, PyTorch {torch.__version__}", flush=True)
if engine == "cuda":
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU although nvidia-smi does: the driver is too old for CUDA, or this user may not use it.")
    for index in range(torch.cuda.device_count()):
        print(f"GPU {index}: {torch.cuda.get_device_name(index)}")
elif current_platform.ray_device_key != "GPU":
    sys.exit("vLLM did not load Quarterdeck's platform plugin, without which it refuses Ray on CPUs. Prepare the node again.")

Path(sys.prefix, "quarterdeck.lock").write_text(f"{fingerprint} verified\n")
print(f"vLLM {importlib.metadata.version('vllm')} works on {current_platform.device_name} ({vllm.__file__}).")
