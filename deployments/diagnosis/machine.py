"""Failures of the machine under vLLM: drivers, libraries, compilers, permissions."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from deployments.diagnosis.signature import Signature

SIGNATURES = (
    Signature(
        "driver-too-old",
        (r"NVIDIA driver on your system is too old \(found version (?P<version>\d+)\)",),
        _(
            "The NVIDIA driver on %(host)s is older than the CUDA that vLLM was built with (found "
            "%(version)s)."
        ),
        _("Install driver 580 or newer there, or an older vLLM (0.19 or before needs driver 525)."),
    ),
    Signature(
        "no-gpu-found",
        (
            r"Failed to infer device type",
            r"Found no NVIDIA driver on your system",
            r"no CUDA-capable device is detected",
            r"No CUDA GPUs are available",
        ),
        _("vLLM finds no GPU on %(host)s."),
        _(
            "Check that nvidia-smi works there for the login user, and that the installed vLLM is the "
            "one for GPUs."
        ),
    ),
    Signature(
        "fabric-manager-missing",
        (r"Error 802: system not yet initialized",),
        _("The GPUs of %(host)s are joined by NVSwitch, and the service that sets it up does not run."),
        _("Install and start nvidia-fabricmanager there, in exactly the version of the driver."),
    ),
    Signature(
        "illegal-memory-access",
        (r"CUDA error: an illegal memory access was encountered",),
        _(
            "A GPU program on %(host)s accessed memory that is not its own. Tensor parallelism can do that between "
            "hosts, and where the GPUs of one, a virtual machine mostly, cannot reach each other's memory."
        ),
        _(
            "Switch on enforce-eager or disable-custom-all-reduce, or use pipeline-parallel-size instead of "
            "tensor-parallel-size."
        ),
        options={"enforce-eager": "true"},
    ),
    Signature(
        "flashinfer-missing",
        (r"No module named 'flashinfer",),
        _("vLLM wants FlashInfer on these GPUs, and it is not installed in the environment on %(host)s."),
        _("Set VLLM_USE_FLASHINFER_SAMPLER=0 for the cluster, or install flashinfer-python on every node."),
    ),
    Signature(
        "cuda-toolkit-missing",
        (r"Could not find nvcc and default cuda_home", r"ninja: build stopped"),
        _("FlashInfer wants to compile a GPU program on %(host)s, and there is no CUDA toolkit (nvcc)."),
        _(
            "Set VLLM_USE_FLASHINFER_SAMPLER=0, or install flashinfer-cubin and flashinfer-jit-cache in "
            "FlashInfer's "
            "own version, or the CUDA toolkit."
        ),
    ),
    Signature(
        "compiler-missing",
        (r"Failed to find C compiler", r"No working C\+\+ compiler found", r"InvalidCxxCompiler"),
        _("vLLM compiles parts of the model when it starts, and %(host)s has no C++ compiler."),
        _("Install gcc and g++ there, or switch on enforce-eager, which compiles nothing."),
        options={"enforce-eager": "true"},
    ),
    Signature(
        "python-headers-missing",
        (r"fatal error: Python\.h: No such file or directory",),
        _(
            "vLLM compiles parts of the model when it starts, and Python's header files are missing on "
            "%(host)s."
        ),
        _("Install the development package of that Python there (python3-dev or python3-devel)."),
    ),
    Signature(
        "libc-too-old",
        (r"version .GLIBC_(?P<version>[\d.]+). not found",),
        _("The system on %(host)s is too old for these packages: they need glibc %(version)s."),
        _("Upgrade the operating system there, or install an older vLLM."),
    ),
    Signature(
        "instruction-not-supported",
        (r"Illegal instruction",),
        _("The CPU of %(host)s lacks instructions that this vLLM was built with (AVX2 or AVX-512)."),
        _("Use a host with a newer CPU."),
    ),
    Signature(
        "cpu-binding-failed",
        (r"Not enough allowed NUMA nodes to bind threads of (?P<workers>\d+) local CPUWorkers",),
        _("%(host)s has fewer NUMA nodes than the %(workers)s workers that vLLM wants to bind to one each."),
        _("Set VLLM_CPU_OMP_THREADS_BIND=nobind for the deployment."),
    ),
    Signature(
        "package-metadata-missing",
        (r"No package metadata was found for vllm",),
        _("The vllm command on %(host)s belongs to a package of another name and cannot start."),
        _("Prepare the node again, so that its environment is made anew."),
    ),
    Signature(
        "permission-denied",
        (r"\[Errno 13\] Permission denied: '(?P<path>[^']+)'",),
        _("The login user on %(host)s may not use %(path)s."),
        _("Give that user the right to it, or choose another directory, and start again."),
    ),
)
