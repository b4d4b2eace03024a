"""Failures for want of memory: of the GPU, of the host, of /dev/shm, of the disk."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from deployments.diagnosis.signature import Signature

SIGNATURES = (
    Signature(
        "context-too-long",
        (
            r"To serve at least one request with the model.s max seq len \((?P<asked>\d+)\), \(?"
            r"(?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
            r"\((?P<available>[\d.]+) GiB\).*the estimated maximum model length is (?P<fits>\d+)",
        ),
        _(
            "One request of %(asked)s tokens needs %(needed)s GiB of KV cache, and %(available)s GiB are "
            "left for it."
        ),
        _("Set max-model-len to %(fits)s, or use more GPUs or an fp8 KV cache."),
        options={"max-model-len": "%(fits)s"},
    ),
    Signature(
        "context-far-too-long",
        (
            r"To serve at least one request with the model.s max seq len \((?P<asked>\d+)\), \(?"
            r"(?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
            r"\((?P<available>[\d.]+) GiB\)",
        ),
        _(
            "One request of %(asked)s tokens needs %(needed)s GiB of KV cache, and %(available)s GiB are "
            "left for it."
        ),
        _("Lower max-model-len, raise gpu-memory-utilization, or use more GPUs or an fp8 KV cache."),
    ),
    Signature(
        "no-room-for-kv-cache",
        (r"No available memory for the cache blocks",),
        _("The weights fill the share of GPU memory that vLLM may use: nothing is left for the KV cache."),
        _("Raise gpu-memory-utilization, use more GPUs, or choose a smaller or quantized model."),
    ),
    Signature(
        "gpu-memory-in-use",
        (
            r"Free memory on device (?:\S+ )?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
            r"less than "
            r"desired GPU memory utilization",
        ),
        _(
            "Only %(free)s of %(total)s GiB of GPU memory are free on %(host)s: another program holds "
            "the rest."
        ),
        _("Stop the program that the node's page shows on this GPU, or lower gpu-memory-utilization."),
    ),
    Signature(
        "gpu-memory-changed",
        (r"Error in memory profiling",),
        _("Another program took or freed GPU memory on %(host)s while vLLM measured it."),
        _("Make sure that nothing else starts or stops on these GPUs, and start again."),
    ),
    Signature(
        "out-of-gpu-memory-warm-up",
        (r"out of memory occurred when warming up sampler with (?P<requests>\d+) dummy requests",),
        _("The GPU memory on %(host)s does not suffice for %(requests)s requests at once."),
        _("Lower max-num-seqs or gpu-memory-utilization."),
    ),
    Signature(
        "out-of-gpu-memory",
        (r"CUDA out of memory", r"CUDA error: out of memory", r"CUBLAS_STATUS_ALLOC_FAILED"),
        _("The GPU memory on %(host)s ran out."),
        _("Lower gpu-memory-utilization or max-num-seqs, switch on enforce-eager, or use more GPUs."),
    ),
    Signature(
        "cpu-kv-cache-too-small",
        (
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache "
            r"allocation is less "
            r"than requested memory for kv \((?P<left>-?[\d.]+)/(?P<asked>[\d.]+) GiB\)",
        ),
        _(
            "The share of memory that vLLM may use on %(host)s is %(asked)s GiB, and after loading the model "
            "%(left)s GiB of it are left for the KV cache."
        ),
        _(
            "Set kv-cache-memory-bytes for this deployment (1G is enough for small models), or free "
            "memory there."
        ),
        options={"kv-cache-memory-bytes": "1G"},
    ),
    Signature(
        "cpu-memory-in-use",
        (
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less "
            r"than "
            r"desired CPU memory utilization",
        ),
        _("Only %(free)s of %(total)s GiB of memory are free on %(host)s, less than vLLM reserves on CPUs."),
        _(
            "Set kv-cache-memory-bytes for this deployment (1G is enough for small models), or free "
            "memory there."
        ),
        options={"kv-cache-memory-bytes": "1G"},
    ),
    Signature(
        "out-of-memory",
        (
            r"Workers \(tasks / actors\) killed due to memory pressure",
            r"can't allocate memory: you tried to allocate",
            r"Out of memory: Killed process",
            r"^MemoryError",
        ),
        _("The memory of %(host)s ran out."),
        _("Load the model on hosts with more memory, or stop what else runs there."),
    ),
    Signature(
        "shared-memory-full",
        (
            r"Error while creating shared memory segment (?P<segment>\S+)",
            r"No space left on device.*/dev/shm",
        ),
        _("Shared memory (/dev/shm) is full on %(host)s: the GPUs of a host exchange data through it."),
        _(
            "Make /dev/shm bigger (in a container with --shm-size or --ipc=host), and remove the "
            "/dev/shm/nccl-* "
            "files that a killed engine left behind."
        ),
    ),
    Signature(
        "disk-full",
        (r"\[Errno 28\] No space left on device", r"\[Errno 122\] Disk quota exceeded"),
        _("A disk is full on %(host)s."),
        _("Free space in the home directory, in /tmp and in /dev/shm there, and start again."),
    ),
    Signature(
        "too-many-open-files",
        (r"^OSError: \[Errno 24\] Too many open files",),
        _("The server on %(host)s may not open more files."),
        _("Raise the limit of open files for the login user (nofile in /etc/security/limits.conf) to 65535."),
    ),
)
