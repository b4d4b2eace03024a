"""Failures that come from what was asked for: options, the model, its files."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from deployments.diagnosis.signature import Kind, Signature

SIGNATURES = (
    Signature(
        "unknown-option",
        (r"error: unrecognized arguments: (?P<arguments>.+)",),
        _("This release of vLLM does not know the options %(arguments)s."),
        _(
            "Remove them from the deployment's options, or use the names that this release has, and "
            "start again."
        ),
    ),
    Signature(
        "invalid-option",
        (r"error: argument (?P<argument>\S+): (?P<why>.+)",),
        _("vLLM refuses the value of %(argument)s: %(why)s."),
        _("Correct that option of the deployment and start again."),
    ),
    Signature(
        "port-in-use",
        (r"\[Errno 98\] Address already in use", r"\[Errno 98\] error while attempting to bind on address"),
        _("Another program on %(host)s already listens on the port that the server needs."),
        _("Give the deployment another port, or stop the program that has this one."),
    ),
    Signature(
        "internal-port-in-use",
        (r"EADDRINUSE", r"server socket has failed to listen on any local network address"),
        _("Two engines on %(host)s chose the same port for their workers to meet."),
        _(
            "Start one after the other, or give each deployment its own ports with VLLM_PORT and "
            "--master-port."
        ),
    ),
    Signature(
        "model-path-missing",
        (
            r"Repo id must be in the form .*'(?P<path>/[^']+)'",
            r"Repo id must use alphanumeric chars.*'(?P<path>/[^']+)'",
            r"Invalid repository ID or local directory specified: '(?P<path>[^']+)'",
            r"OSError: (?P<path>/\S+) is not a local folder",
            r"No such file or directory: '(?P<path>[^']+/config\.json)'",
        ),
        _("The model's directory %(path)s does not exist on %(host)s."),
        _("Put the model under exactly this path on every node of the cluster, or correct the path."),
    ),
    Signature(
        "weights-missing",
        (r"Cannot find any model weights with .(?P<path>/[^`']+)",),
        _("There are no weights in %(path)s on %(host)s: only the configuration is there."),
        _("Copy the model's .safetensors files there, and start again."),
    ),
    Signature(
        "weights-damaged",
        (r"Error while deserializing header", r"SafetensorError"),
        _("A weights file of the model on %(host)s is damaged or was not copied to its end."),
        _(
            "Compare the sizes of its .safetensors files with the original's, and copy those that differ "
            "again."
        ),
    ),
    Signature(
        "architecture-not-supported",
        (r"Model architectures \[(?P<name>[^\]]*)\] are not supported for now",),
        _("This release of vLLM does not support the architecture %(name)s."),
        _("Install a newer vLLM on the cluster's nodes, or choose another model."),
    ),
    Signature(
        "model-type-unknown",
        (r"has model type .(?P<name>[^`]+). but Transformers does not recognize this architecture",),
        _("The installed Transformers does not know the model type %(name)s."),
        _(
            "Install newer packages on the cluster's nodes. If the model is yours, check model_type in "
            "its config.json."
        ),
    ),
    Signature(
        "remote-code-needed",
        (
            r"pass the argument .trust_remote_code=True",
            r"set the option .trust_remote_code=True",
            r"consider setting .trust_remote_code=True",
        ),
        _("The model brings its own Python code, and running it was not allowed."),
        _("If you trust the model's publisher, switch on trust-remote-code for this deployment."),
        options={"trust-remote-code": "true"},
    ),
    Signature(
        "remote-code-not-on-worker",
        (r"No module named 'transformers_modules",),
        _(
            "The model's own Python code was generated on the head only, so the worker on %(host)s "
            "cannot load it."
        ),
        _("Copy the model's .py files into its directory on every node, or install a newer vLLM."),
    ),
    Signature(
        "heads-not-divisible",
        (
            r"Total number of (?:attention|key/value|KV) heads \((?P<heads>\d+)\) must be divisible by "
            r"tensor parallel size \((?P<size>\d+)\)",
        ),
        _("The model's %(heads)s attention heads cannot be divided among %(size)s GPUs."),
        _(
            "Choose a tensor-parallel-size that divides %(heads)s, and use pipeline-parallel-size for "
            "other GPUs."
        ),
    ),
    Signature(
        "experts-not-divisible",
        (r"n_physical_experts=(?P<experts>\d+) must be divisible by ep_size=?\s*(?P<size>\d*)",),
        _("The model's %(experts)s experts cannot be divided among the GPUs."),
        _("Choose a tensor-parallel-size that divides %(experts)s, or switch off expert parallelism."),
    ),
    Signature(
        "size-not-divisible",
        (r"AssertionError: (?P<number>\d+) is not divisible by (?P<size>\d+)",),
        _("A dimension of the model, %(number)s, cannot be divided among %(size)s GPUs."),
        _("Choose a smaller tensor-parallel-size, and use pipeline-parallel-size for the other GPUs."),
    ),
    Signature(
        "pipeline-not-supported",
        (r"Pipeline parallelism is not supported for this model",),
        _("vLLM cannot split this model into pipeline stages."),
        _("Set pipeline-parallel-size to 1 and use tensor-parallel-size instead."),
        options={"pipeline-parallel-size": "1"},
    ),
    Signature(
        "more-stages-than-layers",
        (r"ZeroDivisionError: integer division or modulo by zero",),
        _("There are probably more pipeline stages than the model has layers."),
        _("Choose a pipeline-parallel-size that is at most the number of layers in the model's config.json."),
    ),
    Signature(
        "pipeline-needs-warm-up",
        (r"intermediate_tensors is not None",),
        _("On CPUs, pipeline parallelism with enforce-eager fails at the first request."),
        _("Switch off enforce-eager, or use tensor-parallel-size instead of pipeline-parallel-size."),
        options={"enforce-eager": "false"},
    ),
    Signature(
        "length-beyond-model",
        (
            r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
            r"\((?:max_position_embeddings=|model_max_length=)?(?P<longest>\d+)",
        ),
        _("A max-model-len of %(asked)s is more than the %(longest)s tokens that the model was made for."),
        _("Set max-model-len to %(longest)s or less."),
        options={"max-model-len": "%(longest)s"},
    ),
    Signature(
        "access-to-model-denied",
        (r"Cannot access gated repo", r"401 Client Error", r"GatedRepoError"),
        _("The model's hub refuses the download: the model needs an accepted licence and an access token."),
        _(
            "Accept the model's licence at the hub, and give every node of the cluster an access token "
            "(HF_TOKEN)."
        ),
    ),
    Signature(
        "hub-not-reachable",
        (r"We couldn't connect to '(?P<address>[^']+)'", r"LocalEntryNotFoundError"),
        _("%(host)s cannot reach the model hub, and the model is not on its disk."),
        _(
            "Copy the model to the nodes and give the deployment its path, or set a mirror that the "
            "nodes can reach."
        ),
    ),
    Signature(
        "executor-not-ray",
        (r"World size \((?P<world>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",),
        _(
            "The layout needs %(world)s GPUs, and the host has %(gpus)s: vLLM was not told to use the "
            "others through Ray."
        ),
        _("Set distributed-executor-backend to ray, or choose a layout that fits on one host."),
        options={"distributed-executor-backend": "ray"},
    ),
    Signature(
        "cpu-without-ray",
        (r"current platform cpu does not support ray",),
        _("vLLM on CPUs does not run through Ray."),
        _("Use one host for this deployment: set distributed-executor-backend to mp."),
        options={"distributed-executor-backend": "mp"},
    ),
    Signature(
        "head-size-not-supported",
        (r"Unsupported CPU attention configuration: head_dim=(?P<size>\d+)",),
        _("vLLM on CPUs cannot compute attention heads of size %(size)s."),
        _("Run this model on GPUs, or choose a model with another head size."),
    ),
    Signature(
        "quantization-not-supported",
        (r"quantization method (?P<method>\S+) is not supported for the current GPU",),
        _("The GPU on %(host)s is too old for the model's quantization, %(method)s."),
        _("Choose a variant of the model with another quantization, or a newer GPU."),
    ),
    Signature(
        "bfloat16-not-supported",
        (r"Bfloat16 is only supported on GPUs with compute capability of at least (?P<needed>\d+\.\d+)",),
        _("The GPU on %(host)s is too old for bfloat16, which needs compute capability %(needed)s."),
        _("Set dtype to half."),
        options={"dtype": "half"},
    ),
    Signature(
        "engine-failed",
        (
            r"Engine core initialization failed",
            r"WorkerProc initialization failed",
            r"EngineDeadError",
            r"Worker failed with error",
            r"\d+ validation errors? for \w+",
            r"^(?:[\w.]+\.)?RayTaskError\(",
        ),
        _("The engine stopped, and the log does not say why."),
        _("Read the log of the Ray workers on the other hosts: the reason is in the first traceback there."),
        kind=Kind.WRAPPER,
    ),
)
