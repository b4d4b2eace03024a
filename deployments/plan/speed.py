"""Expected tokens a second of one copy: a roofline over memory, arithmetic and the links between GPUs.

It exists to rank layouts, not to promise figures. The lab (four H200 hosts over sockets, Qwen2.5-14B, 512
tokens in, 128 out) measured 105 tokens a second for one stream with PP=4 where this says 100, 2,641 for 64
streams where this says 3,090, and 287 for 64 streams with TP=4 where this says 230.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.plan.hosts import Speed
from deployments.plan.memory import Memory, Stage

# The request that layouts are ranked with: the lab's benchmark.
PROMPT_TOKENS = 512
ANSWER_TOKENS = 128

MEMORY_SHARE = 0.75  # of the data sheet's bandwidth that decoding reaches
COMPUTE_SHARE = 0.5
NETWORK_SHARE = 0.8
STEP = 1.0e-3  # seconds of scheduling for each step of the engine
PER_SEQUENCE = 15e-6  # seconds a step spends on each sequence: sampling, detokenising, HTTP
GRAPH_LAYER = 10e-6  # seconds to launch a layer from a CUDA graph
EAGER_LAYER = 180e-6
LOCAL_ALL_REDUCE = 30e-6
LOCAL_HOP = 50e-6
#: Below this many Gbit/s the network is taken for sockets, above for RDMA; seconds for one message.
RDMA_GBPS = 100
SOCKET_MESSAGE = 50e-6
RDMA_MESSAGE = 10e-6
SOCKET_HOP = 200e-6


@dataclass(frozen=True)
class Network:
    """What joins the hosts. ``gbps`` is one way, in Gbit/s."""

    gbps: float

    @property
    def rate(self) -> float:
        """Bytes a second that arrive."""
        return self.gbps / 8 * 1e9 * NETWORK_SHARE

    @property
    def message(self) -> float:
        return SOCKET_MESSAGE if self.gbps < RDMA_GBPS else RDMA_MESSAGE

    @property
    def hop(self) -> float:
        return SOCKET_HOP if self.gbps < RDMA_GBPS else LOCAL_HOP


@dataclass(frozen=True)
class Shape:
    """One copy over the hosts: speed of each stage, and whether its tensor group and next hop cross hosts."""

    speeds: tuple[Speed, ...]
    tensor_crosses: tuple[bool, ...]
    hop_crosses: tuple[bool, ...]  # from stage j to stage j + 1; one fewer than stages


def workload(longest: int) -> tuple[int, int]:
    """Tokens in and out of the request that layouts are compared with; scaled down for a short context."""
    total = min(longest, PROMPT_TOKENS + ANSWER_TOKENS)
    answer = max(1, total * ANSWER_TOKENS // (PROMPT_TOKENS + ANSWER_TOKENS))
    return max(1, total - answer), answer


def tokens_per_second(
    memory: Memory,
    stages: Sequence[Stage],
    shape: Shape,
    network: Network,
    batch: float,
    prompt: int,
    answer: int,
) -> float:
    """Answer tokens a second with ``batch`` requests at once, their prompts' cost included."""
    context = prompt + answer / 2
    one_round = _round(memory, stages, shape, network, max(1.0, batch), context)
    prefill = batch * prompt * _prefill(memory, stages, shape, network)
    return batch * answer / (prefill + answer * one_round)


def _round(
    memory: Memory, stages: Sequence[Stage], shape: Shape, network: Network, batch: float, context: float
) -> float:
    """Seconds until each of the running requests has one token more."""
    turns = min(len(stages), batch)  # micro-batches that fill the pipeline
    share = batch / turns
    times = [_decode(memory, s, shape, j, network, share, context) for j, s in enumerate(stages)]
    hops = [_hop(memory, crosses, network, share) for crosses in shape.hop_crosses]
    step = STEP + PER_SEQUENCE * share
    alone = sum(times) + sum(hops) + step
    return max(alone, turns * (max(times) + max(hops, default=0) + step))


def _decode(
    memory: Memory, stage: Stage, shape: Shape, j: int, network: Network, batch: float, context: float
) -> float:
    """Seconds one stage needs to decode one token of each sequence of a micro-batch."""
    speed, layers = shape.speeds[j], stage.end_layer - stage.first_layer
    read = _read(memory, stage, batch) + batch * context * stage.kv_per_token
    work = batch * 2 * _active(memory, stage)
    busy = max(read / (speed.memory * MEMORY_SHARE), work / (speed.compute * COMPUTE_SHARE))
    launch = layers * (EAGER_LAYER if memory.wishes.eager else GRAPH_LAYER)
    return busy + launch + 2 * layers * _all_reduce(memory, shape, j, network, batch)


def _read(memory: Memory, stage: Stage, batch: float) -> float:
    """Bytes of weights that a step reads: not the embedding, and only the experts that were chosen."""
    model, p = memory.model, memory.model.precision
    size = stage.weights - memory.buffers - (memory.table if stage.first_layer == 0 else 0)
    if stage.end_layer == len(model.layers) and stage.first_layer == 0 and model.tied:
        size += memory.table
    experts = memory.expert_sums[stage.end_layer] - memory.expert_sums[stage.first_layer]
    if experts:
        untouched = (1 - model.experts_per_token / model.experts) ** batch
        size -= int(untouched * experts / memory.tensor * p.expert)
    return size


def _active(memory: Memory, stage: Stage) -> float:
    """Parameters that a token passes through on one rank."""
    total = memory.active_sums[stage.end_layer] - memory.active_sums[stage.first_layer]
    head = memory.model.embedding if stage.end_layer == len(memory.model.layers) else 0
    return (total + head) / memory.tensor


def _all_reduce(memory: Memory, shape: Shape, j: int, network: Network, tokens: float) -> float:
    """Seconds to add up one hidden state per token over the ranks of a stage; there are two a layer."""
    ranks = memory.tensor
    if ranks == 1:
        return 0.0
    moved = tokens * memory.model.hidden * 2 * 2 * (ranks - 1) / ranks
    if shape.tensor_crosses[j]:
        return 2 * (ranks - 1) * network.message + moved / network.rate
    return LOCAL_ALL_REDUCE + moved / shape.speeds[j].link


def _hop(memory: Memory, crosses: bool, network: Network, tokens: float) -> float:
    """Seconds to hand a micro-batch to the next stage: hidden state and residual."""
    moved = tokens * memory.model.hidden * 2 * 2
    return network.hop + moved / network.rate if crosses else LOCAL_HOP + moved / 20e9


def _prefill(memory: Memory, stages: Sequence[Stage], shape: Shape, network: Network) -> float:
    """Seconds a prompt token costs in the steady state: the slowest stage or hop decides."""
    chunk = memory.batched_tokens
    slowest = 0.0
    for j, stage in enumerate(stages):
        busy = chunk * 2 * _active(memory, stage) / (shape.speeds[j].compute * COMPUTE_SHARE)
        layers = stage.end_layer - stage.first_layer
        slowest = max(slowest, busy + 2 * layers * _all_reduce(memory, shape, j, network, chunk))
    hops = (_hop(memory, crosses, network, chunk) for crosses in shape.hop_crosses)
    return max(slowest, max(hops, default=0.0)) / chunk
