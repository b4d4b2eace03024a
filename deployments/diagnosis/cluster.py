"""Failures between hosts: Ray, placement, addresses, NCCL, and workers that were lost."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from deployments.diagnosis.signature import Kind, Signature

# What a start prints once its workers have found each other.
CONNECTED = r"Init COMPLETE|is assigned as|Loading model|Starting to load|Model loading|KV cache|Capturing"

SIGNATURES = (
    Signature(
        "addresses-not-unique",
        (
            r"Every node should have a unique IP address\. Got (?P<nodes>\d+) nodes with "
            r"(?P<addresses>\d+) unique",
        ),
        _(
            "%(nodes)s nodes told vLLM only %(addresses)s different addresses, because VLLM_HOST_IP was "
            "set wrongly."
        ),
        _(
            "Start Ray again on every node with VLLM_HOST_IP set to that node's own address in the "
            "cluster's network."
        ),
    ),
    Signature(
        "address-unknown-to-ray",
        (r"No available node types can fulfill resource request \{.*'node:(?P<address>[^']+)'",),
        _("vLLM looks for a node with the address %(address)s, and Ray knows that node by another one."),
        _("Start Ray again with --node-ip-address and VLLM_HOST_IP set to the same address on each node."),
    ),
    Signature(
        "resources-not-there",
        (r"No available node types can fulfill resource request (?P<request>\{[^}]*\})",),
        _("No node of the Ray cluster has what a worker asks for: %(request)s."),
        _(
            "Compare the GPUs on the cluster's page with what the plan needs. Let the missing node join, "
            "or plan anew."
        ),
    ),
    Signature(
        "placement-refused",
        (r"Cannot provide a placement group requiring (?P<gpus>\d+) GPUs",),
        _("The Ray cluster did not have %(gpus)s free GPUs for as long as vLLM waited."),
        _("Let the missing node join, stop what holds the GPUs, or choose a layout with fewer."),
    ),
    Signature(
        "placement-waits",
        (r"Waiting for creating a placement group of specs for (?P<seconds>\d+) seconds",),
        _("vLLM has waited %(seconds)s s for GPUs that the Ray cluster does not have free."),
        _("Let the missing node join, stop what holds the GPUs, or choose a layout with fewer."),
        kind=Kind.STALL,
        until=r"world_size=\d+ rank=",
        times=2,
    ),
    Signature(
        "gpus-taken-for-tpus",
        (r"\d+\.\d+/(?P<count>\d+)\.\d+ TPU\b",),
        _("Ray takes the GPUs of a node for TPUs, because of device files of the NVIDIA driver."),
        _('Start Ray there with --num-gpus, or with RAY_OVERRIDE_RESOURCES=\'{"GPU": N, "TPU": 0}\'.'),
        kind=Kind.CONSEQUENCE,
    ),
    Signature(
        "server-without-gpu",
        (
            r"driver node id \S+ is not included in a placement group",
            r"Ray does not allocate any GPUs on the driver node",
            r"Current node has no GPU available",
        ),
        _("The server runs on a node whose GPUs are not part of the deployment."),
        _("Choose a head with a free GPU, so that the server runs on one of the deployment's nodes."),
    ),
    Signature(
        "name-resolves-to-loopback",
        (r"Unable to resolve hostname to a \(local\) address", r"Gloo connectFullMesh failed"),
        _(
            "The workers cannot reach each other: the name of %(host)s resolves to 127.x, or the wrong "
            "network is used."
        ),
        _(
            "Give the host name its real address in /etc/hosts, and set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME "
            "to the cluster's interface on every node."
        ),
        kind=Kind.CONSEQUENCE,
    ),
    Signature(
        "wrong-interface",
        (r"NCCL INFO Bootstrap: Using (?P<interface>lo|docker\w*|virbr\w*|br-\w+|tailscale\w*):",),
        _(
            "The worker on %(host)s uses the interface %(interface)s, over which other hosts cannot be "
            "reached."
        ),
        _(
            "Set NCCL_SOCKET_IFNAME to the cluster's interface before Ray starts, on every node, and "
            "start again."
        ),
        kind=Kind.STALL,
        until=CONNECTED,
    ),
    Signature(
        "versions-differ",
        (r"Version mismatch: The cluster was started with", r"Ray version mismatch: cluster has"),
        _(
            "The Ray or the Python of %(host)s differs from that of the cluster's head, down to the last "
            "number."
        ),
        _("Prepare the nodes again, so that all have the same environment, and start Ray again on them."),
    ),
    Signature(
        "ray-not-installed",
        (r"Failed to import Ray", r"\"ray\": executable file not found", r"No module named 'ray'"),
        _("Ray is not installed in the environment on %(host)s; vLLM does not bring it any more."),
        _("Prepare the node again: that installs Ray beside vLLM."),
    ),
    Signature(
        "ray-not-running",
        (r"Could not find any running Ray instance",),
        _("There is no Ray on %(host)s that the server could connect to."),
        _("Start the cluster's Ray, and then the deployment."),
    ),
    Signature(
        "ray-already-running",
        (r"Ray is trying to start at (?P<asked>\S+), but is already running at (?P<found>\S+)",),
        _("A Ray of an earlier session still runs on %(host)s."),
        _("Stop it on the node's page, wait until its port is free, and start again."),
    ),
    Signature(
        "ray-not-reachable",
        (
            r"Failed to connect to GCS at address (?P<address>\S+) within",
            r"Timed out while waiting for GCS to become available",
        ),
        _("%(host)s cannot reach the Ray head."),
        _(
            "Check that Ray runs on the head and that no firewall blocks the cluster's ports between the "
            "nodes."
        ),
    ),
    Signature(
        "ray-node-dead",
        (
            r"address: (?P<host>\S+) and node name: .* "
            r"marked dead because the detector has missed too many heartbeats",
        ),
        _("Ray gave up %(host)s, which did not answer any more: it was overloaded, cut off or switched off."),
        _("Check that the node is up and reachable from the head. Its Ray must be started again to join."),
    ),
    Signature(
        "ray-path-too-long",
        (r"AF_UNIX path length cannot exceed",),
        _("The path of Ray's directory on %(host)s is too long for its sockets."),
        _("Choose a shorter directory for Quarterdeck on this node: at most about 40 characters."),
    ),
    Signature(
        "ray-dashboard-missing",
        (r"Cannot include dashboard with missing packages",),
        _("Ray is installed on %(host)s without its dashboard, which Quarterdeck asks about nodes."),
        _("Prepare the node again: that installs ray[default]."),
    ),
    Signature(
        "nccl-hangs",
        (r"vLLM is using nccl==", r"NCCL INFO .*Init START"),
        _("The GPUs do not find each other: NCCL began to connect them and did not finish."),
        _(
            "Try NCCL_P2P_DISABLE=1, then NCCL_IB_DISABLE=1, and check that all ports are open between "
            "the nodes. "
            "In virtual machines, switch off PCI ACS."
        ),
        kind=Kind.STALL,
        until=CONNECTED,
    ),
    Signature(
        "nccl-failed",
        (r"NCCL error", r"DistBackendError", r"unhandled system error", r"ncclInvalidUsage"),
        _("The communication between the GPUs broke on %(host)s."),
        _(
            "Start again with NCCL_DEBUG=INFO: the first line with NCCL WARN names the reason. Often it "
            "is a full "
            "/dev/shm, different drivers, or the same address on two nodes."
        ),
        kind=Kind.CONSEQUENCE,
    ),
    Signature(
        "step-timed-out",
        (r"RayChannelTimeoutError",),
        _("A step of the engine took longer than Ray allows, or a worker is gone."),
        _(
            "Look for a worker that died before. If there is none, raise RAY_CGRAPH_get_timeout (300 s "
            "is the default)."
        ),
        kind=Kind.CONSEQUENCE,
    ),
    Signature(
        "worker-died",
        (
            r"RayWorkerProc rank=\[(?P<worker>[\d, ]*)\] died unexpectedly",
            r"Worker proc (?P<worker>\S+) died unexpectedly",
            r"Connection closed by peer",
            r"The actor (?:is dead|died) (?:because|unexpectedly)",
            r"RuntimeError: Executor failed\.",
        ),
        _("A worker of the engine died, or its host was lost, and the log does not say why."),
        _(
            'Look at the node\'s memory at that time, and for "Out of memory" or "Xid" in its kernel log '
            "(dmesg)."
        ),
        kind=Kind.CONSEQUENCE,
    ),
    Signature(
        "start-timed-out",
        (r"Timed out waiting for engine core processes to start",),
        _("The engine did not come up in the time that vLLM gives it."),
        _(
            "Read what its workers were doing last. If they were loading weights, raise "
            "VLLM_ENGINE_READY_TIMEOUT_S."
        ),
        kind=Kind.CONSEQUENCE,
    ),
    Signature(
        "engine-stuck",
        (r"Avg generation throughput: 0\.0 tokens/s, Running: (?P<running>[1-9]\d*) reqs",),
        _("The engine has %(running)s requests and produces no tokens: it or one of its workers hangs."),
        _("Restart the deployment. All of its workers must be restarted together."),
        kind=Kind.STALL,
        until=r"Avg generation throughput: (?!0\.0 tokens/s, Running: [1-9])",
        times=3,
    ),
)
