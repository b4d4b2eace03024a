"""The plan: which GPUs, how they share the work, vLLM's flags, expected memory, and the reasons. Pure.

    plan(model, hosts, wishes, network_gbps) -> Plan

`ModelConfig.from_config` reads a config.json, `HostSpec.from_facts` a node, `Wishes.from_flags` vLLM's own
flags; only `deployments.plan.files` touches files.
"""

from deployments.plan.hosts import BadInput, GpuSpec, HostSpec
from deployments.plan.model import ModelConfig
from deployments.plan.planner import plan
from deployments.plan.result import Alternative, Layout, Nearest, Placement, Plan
from deployments.plan.wishes import Wishes

__all__ = [
    "Alternative",
    "BadInput",
    "GpuSpec",
    "HostSpec",
    "Layout",
    "ModelConfig",
    "Nearest",
    "Placement",
    "Plan",
    "Wishes",
    "plan",
]
