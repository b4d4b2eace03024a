"""Ray on a node: its ports, how it is started, asked and reached. Pure.

One node of a cluster starts the head, the others join it. Ray runs in the foreground, as a job. Signal all
processes of that job and they end within seconds: Ray is told not to drain first, for which it would wait 30
s for a head that has got the same signal. `ray stop` is never used, since it ends everybody's Ray on the
host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from types import MappingProxyType

from controlplane.secrets import Secret
from nodes.facts import Facts, Process
from nodes.recipes import Site, asset
from nodes.remote.command import Command, python, script

#: Ray replaces 127.0.0.1 by the host's outward address, which may change while it runs; this one it keeps.
LOOPBACK = "127.0.0.2"
NO_RESOURCES: Mapping[str, float] = MappingProxyType({})
_UNROUTABLE = frozenset({"", "localhost", "127.0.0.1", "127.0.1.1", "::1", "0.0.0.0", "::"})  # noqa: S104
_OBJECT_STORE = 256 * 2**20  # bytes; vLLM hardly uses it, and by default Ray takes 30 % of the memory

# Ray makes its directories writable for everybody, so they lie inside one that is not. Its sockets' paths may
# not be longer than 107 bytes, hence /tmp. What ended sessions left is removed (a session is named after its
# head's pid), and so are links to it, which Ray would not replace.
_START = """
umask 077
directory=$1 token=$2; shift 2
mkdir -p "$directory" "$(dirname "$token")"
if [ -L "$directory" ] || ! [ -O "$directory" ]; then
  echo "$directory belongs to somebody else, and Ray needs it. Remove it, then start again." >&2
  exit 1
fi
chmod 700 "$directory"
for old in "$directory"/r/session_2*; do
  if ! [ -d "/proc/${old##*_}" ]; then rm -rf "$old"; fi
done
for link in "$directory"/r/*; do
  if ! [ -e "$link" ]; then rm -f "$link"; fi
done
mv "$QD_JOB/ray.token" "$token"
exec "$@"
"""


@dataclass(frozen=True)
class PortPlan:
    """Every port that Ray listens on, on each node; without a plan most of them are random."""

    gcs: int
    dashboard: int
    node_manager: int
    object_manager: int
    runtime_env_agent: int
    agent_grpc: int
    agent_http: int
    metrics: int
    client: int
    autoscaler_metrics: int
    dashboard_metrics: int
    first_worker: int
    last_worker: int

    @property
    def fixed(self) -> tuple[int, ...]:
        """The ports that must be free before Ray starts; workers choose among theirs."""
        return astuple(self)[:-2]

    @property
    def end(self) -> int:
        """The first port that is not Ray's any more; model servers are given ports from here on."""
        return self.last_worker + 1


def port_plan(base: int) -> PortPlan:
    """Ray's 340 ports from ``base`` on; the 60 that follow are left to model servers."""
    return PortPlan(*(base + offset for offset in (*range(11), 20, 339)))


def ray_address(address: str) -> str:
    """The address that Ray goes by on a node that is reached at ``address``: one that Ray takes as it is."""
    return LOOPBACK if address in _UNROUTABLE else address


def start_head(
    facts: Facts, site: Site, plan: PortPlan, address: str, token: Secret, custom: Mapping[str, float] = NO_RESOURCES
) -> Command:
    """Start a cluster; runs until it is stopped. ``address`` is the node's own, an IP address.

    ``custom`` are resources of the operator's own naming that the node offers besides its processors and GPUs.
    """
    head = [
        "--head", f"--port={plan.gcs}", f"--ray-client-server-port={plan.client}", "--disable-usage-stats",
        "--include-dashboard=false", "--dashboard-host=127.0.0.1", f"--dashboard-port={plan.dashboard}",
    ]  # fmt: skip
    return _start(facts, site, plan, address, token, [*head, *_resources(custom)])


def start_worker(
    facts: Facts, site: Site, plan: PortPlan, address: str, token: Secret, head: str,
    custom: Mapping[str, float] = NO_RESOURCES,
) -> Command:  # fmt: skip
    """Join the cluster whose head is at ``head``, an IP address; else as `start_head`."""
    role = [f"--address={ray_address(head)}:{plan.gcs}", *_resources(custom)]
    return _start(facts, site, plan, address, token, role)


def _resources(custom: Mapping[str, float]) -> list[str]:
    return [f"--resources={json.dumps(dict(custom))}"] if custom else []


def offered_gpus(facts: Facts) -> int:
    """How many GPUs Ray is told of. On CPUs vLLM's worker takes one all the same: see quarterdeck_cpu_ray.py."""
    return len(facts.gpus) or 1


def _start(facts: Facts, site: Site, plan: PortPlan, address: str, token: Secret, role: list[str]) -> Command:
    options = [
        f"--node-ip-address={ray_address(address)}",
        f"--num-gpus={offered_gpus(facts)}",
        f"--node-manager-port={plan.node_manager}",
        f"--object-manager-port={plan.object_manager}",
        f"--runtime-env-agent-port={plan.runtime_env_agent}",
        f"--dashboard-agent-grpc-port={plan.agent_grpc}",
        f"--dashboard-agent-listen-port={plan.agent_http}",
        f"--metrics-export-port={plan.metrics}",
        f"--min-worker-port={plan.first_worker}",
        f"--max-worker-port={plan.last_worker}",
        f"--object-store-memory={_OBJECT_STORE}",
        f"--temp-dir={directory(site)}/r",
        "--log-color=false",
    ]
    env = {
        **worker_environment(facts, site, address),
        **_authentication(site),
        "AUTOSCALER_METRIC_PORT": str(plan.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(plan.dashboard_metrics),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Ray would keep one idle process a processor ready, 80 MB each; vLLM asks for its own.
        "RAY_prestart_worker_first_driver": "0",
    }
    ray = f"{site.environment}/bin/ray"
    line = [ray, "start", "--block", *role, *options]
    started = script(_START, directory(site), _token_path(site), *line, env=env)
    return started.with_files({"ray.token": token.reveal().encode()})


def view(site: Site, plan: PortPlan, address: str, patience: float) -> Command:
    """How the cluster is, asked on its head: one JSON object, for `nodes.clusters.view`.

    Fails, with the reason as its last words, if Ray has not answered after ``patience`` seconds.
    """
    return _view(site, plan, address, f"{patience:g}")


def follow(site: Site, plan: PortPlan, address: str, every: float) -> Command:
    """The same again and again, one line each ``every`` seconds, until its standard input ends or Ray does."""
    return _view(site, plan, address, "10", f"{every:g}")


def _view(site: Site, plan: PortPlan, address: str, *times: str) -> Command:
    program = asset("ray_view.py").decode()
    return python(
        site.interpreter, program, ray_address(address), str(plan.gcs), *times, env=_authentication(site))


def end_processes(processes: Iterable[Process]) -> Command:
    """End these processes, and no others that got their pids. Fails if some are left, and prints their pids then."""
    named = [f"{process.pid}:{process.started}" for process in processes]
    return python("python3", asset("end_processes.py").decode(), *named)


def clean_up(site: Site) -> Command:
    """Remove what Ray left on the node: its logs, its sockets and the token. Only once it has ended."""
    return script('rm -rf -- "$1" "$2"', directory(site), _token_path(site))


def client_environment(site: Site, plan: PortPlan, head: str) -> Mapping[str, str]:
    """What a program on a node needs to find Ray and be let in. Without it, vLLM starts a Ray of its own."""
    return {"RAY_ADDRESS": f"{ray_address(head)}:{plan.gcs}", **_authentication(site)}


def worker_environment(facts: Facts, site: Site, address: str) -> Mapping[str, str]:
    """What differs between nodes, or has to be there before Ray starts: vLLM's workers are Ray's children."""
    own = ray_address(address)
    interface = next((found.name for found in facts.interfaces if found.address == own), "")
    network = {name: interface for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if interface}
    return {
        "VLLM_HOST_IP": own,
        **network,
        "VLLM_CACHE_ROOT": f"{site.cache}/vllm",
        # Programs that rename themselves overwrite their environment, and with it the mark of their job.
        "SPT_NOENV": "1",
    }


def directory(site: Site) -> str:
    return "/tmp/qd-" + hashlib.sha256(site.root.encode()).hexdigest()[:8]  # noqa: S108


def _token_path(site: Site) -> str:
    return f"{site.root}/ray/token"


def _authentication(site: Site) -> Mapping[str, str]:
    # By path: in the environment it would stand in the argument list of commands that are not jobs.
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": _token_path(site)}
