"""What the gateway's bench measures: the gateway, nginx and LiteLLM, each on one core, and no proxy at all."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = "/v1/chat/completions"
TICK = os.sysconf("SC_CLK_TCK")

_NGINX = """
daemon off; worker_processes 1; pid {here}/nginx.pid; error_log {here}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;
  fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
_LITELLM = """
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
"""
_SETUP = """
import sys
from django.contrib.auth.models import User
from deployments.gateway import keys
from deployments.models import Deployment
from nodes.models import Cluster, Node
node = Node.objects.create(name="bench", kind="local", address="127.0.0.1")
cluster = Cluster.objects.create(name="bench", head=node)
port = {upstream}
one = Deployment.objects.create(name="m", model="/m", cluster=cluster, port=port, state="ready", api_key="upstream")
one.replicas.create(number=1, node=node, port=port, state="ready")
print(keys.create(User.objects.create_user("bench"), "bench")[1])
"""


@dataclass
class Subject:
    """A proxy that is running, or the model server itself (``pid`` 0)."""

    name: str
    port: int
    pid: int = 0
    key: str = "none"

    @property
    def headers(self) -> dict[str, str]:
        """Of a request to it; vLLM insists on the type."""
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    def cpu(self) -> float:
        """Seconds of processor time used so far, by it and its workers."""
        return sum(_cpu_of(pid) for pid in _family(self.pid))

    def rss(self) -> float:
        """MiB resident, with its workers."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self.pid))
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _family(pid: int) -> list[int]:
    if not pid:
        return []
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(
    argv: list[str], core: int | None, log: Path, env: dict[str, str] | None = None, *, heard: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A child, on one core unless that is None, ended with its group at the end.

    What it says is in ``log``; ``heard``: its standard output is read by the caller, who must not stop doing so.
    """
    with log.open("w") as errors:
        child = subprocess.Popen(
            [*(["taskset", "-c", str(core)] if core is not None else []), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if heard else errors,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            yield child
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def answers(subject: Subject, seconds: float) -> bool:
    """Whether it answers a whole completion within so many seconds: of one token, since an engine takes its time."""
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"Who?"}]}'
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=30)
        try:
            connection.request("POST", PATH, body, subject.headers)
            if connection.getresponse().status == 200:
                return True
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    return False


@contextmanager
def direct(upstream: int, here: Path) -> Iterator[Subject | None]:
    yield Subject("direct", upstream)


@contextmanager
def nginx(upstream: int, here: Path) -> Iterator[Subject | None]:
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not program:
        yield None
        return
    port, config = free_port(), here / "nginx.conf"
    config.write_text(_NGINX.format(here=here, port=port, upstream=upstream))
    with process([program, "-p", str(here), "-c", str(config)], 0, here / "nginx.err") as child:
        yield Subject("nginx", port, child.pid)


@contextmanager
def litellm(upstream: int, here: Path) -> Iterator[Subject | None]:
    program = os.environ.get("LITELLM") or shutil.which("litellm")
    if not program:
        yield None
        return
    port, config = free_port(), here / "litellm.yaml"
    key = "sk-" + secrets.token_hex(32)
    config.write_text(_LITELLM.format(upstream=upstream, key=key))
    argv = [
        program,
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    with process(argv, 0, here / "litellm.err", {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}) as child:
        yield Subject("litellm", port, child.pid, key)


@contextmanager
def gateway(upstream: int, here: Path) -> Iterator[Subject | None]:
    """`manage.py gateway` with its own database, a key and a deployment: metering and limits as they are."""
    env = {"QUARTERDECK_VAR": str(here / "var"), "DATABASE_URL": "", "REDIS_URL": "", "LOG_LEVEL": "WARNING"}
    manage = [sys.executable, str(ROOT / "manage.py")]
    given = {"env": {**os.environ, **env}, "cwd": ROOT, "text": True, "check": True, "capture_output": True}
    subprocess.run([*manage, "migrate", "-v0"], **given)  # type: ignore[call-overload]
    setup = _SETUP.format(upstream=upstream)
    made = subprocess.run([*manage, "shell", "-v0", "-c", setup], **given)  # type: ignore[call-overload]
    port = free_port()
    with process([*manage, "gateway", "--port", str(port)], 0, here / "gateway.err", env) as child:
        yield Subject("gateway", port, child.pid, made.stdout.split()[-1])


Make = Callable[[int, Path], AbstractContextManager[Subject | None]]


@contextmanager
def running(makers: list[Make], upstream: int, here: Path) -> Iterator[dict[str, Subject]]:
    """Those that are installed and came up, by name. What did not come up says so on stderr."""
    with ExitStack() as stack:
        found = [stack.enter_context(make(upstream, here)) for make in makers]
        ready = [one for one in found if one and answers(one, 60)]
        for one in found:
            if one and one not in ready:
                errors = (here / f"{one.name}.err").read_text()
                print(f"{one.name} does not answer and is left out: {errors[-500:]}", file=sys.stderr)
        yield {one.name: one for one in ready}
