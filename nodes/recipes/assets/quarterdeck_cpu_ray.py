"""A vLLM platform plugin for hosts without a GPU: it lets Ray place vLLM's workers on CPUs.

Stock vLLM refuses Ray on CPUs, since it places one worker on each of Ray's GPUs and its CPU platform names
none. Here the CPU platform goes by Ray's resource "GPU"; Ray is started with ``--num-gpus=1`` and does not
look for a real one. Installed into CPU environments only.
"""

from vllm.platforms.cpu import CpuPlatform


def register():
    return "quarterdeck_cpu_ray.RayCpuPlatform"


class RayCpuPlatform(CpuPlatform):
    ray_device_key = "GPU"
    ray_noset_device_env_vars = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    @classmethod
    def get_device_communicator_cls(cls):
        return "quarterdeck_cpu_communicator.HostAwareCpuCommunicator"
