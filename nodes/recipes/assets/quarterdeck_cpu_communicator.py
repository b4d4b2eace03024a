"""How vLLM's workers on CPUs talk to each other, when Ray has placed them on several hosts.

Stock vLLM lets them talk through shared memory as soon as they agree on its name, and takes the name from a variable
that Ray gives to all of them: over several hosts they then look for memory that is another host's. Workers of one host
go on as before; others talk over the network.
"""

import socket

import torch
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class HostAwareCpuCommunicator(CpuCommunicator):
    def _all_group_ranks_share_shm_group_name(self):
        hosts = [""] * self.world_size
        torch.distributed.all_gather_object(hosts, socket.gethostname(), group=self.device_group)
        return len(set(hosts)) == 1 and super()._all_group_ranks_share_shm_group_name()
