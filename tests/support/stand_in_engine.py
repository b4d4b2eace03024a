"""A stand-in for the engine on a node: an environment whose `ray` and `vllm` are small programs that play their parts.

For the logic around them (ports, phases, failures, stops); what real Ray and vLLM do is tested with the real ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nodes.recipes.python_env import fingerprint

_RAY = """#!{python}
import socket, sys, time
if sys.argv[1] == "status":
    print("Active:\\n 1 node_0123\\nPending:\\n\\n 0.0/2.0 CPU\\n 0.0/1.0 GPU\\n")
    sys.exit(0)
options = dict(word.split("=", 1) for word in sys.argv if "=" in word)
listener = socket.create_server((options["--node-ip-address"], int(options["--port"])))
print("stand-in Ray runs", flush=True)
while True:
    listener.accept()[0].close()
"""

_VLLM = """#!{python}
import http.server, json, os, pathlib, signal, sys, time
behaviour = pathlib.Path({behaviour!r}).read_text().split()
config = {{}}
for line in pathlib.Path(sys.argv[3]).read_text().splitlines():
    name, separator, value = line.partition(": ")
    config[name if separator else "name"] = value or line.removeprefix("- ")
if behaviour[0] == "fail":
    print(pathlib.Path(behaviour[1]).read_text(), flush=True)
    sys.exit(1)
if behaviour[0] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour[0] == "litter":  # a worker that stays when the server dies
    import subprocess
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    pathlib.Path({behaviour!r}).with_name("server.pid").write_text(str(os.getpid()))
print("INFO Starting to load model", flush=True)
print("INFO Model loading took 0.25 GiB memory and 1.0 seconds", flush=True)
while behaviour[0] == "slow":
    time.sleep(0.1)

class Server(http.server.BaseHTTPRequestHandler):
    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.answer(401, {{}})
        self.answer(200, {{"data": [{{"id": config["name"].removeprefix("- ")}}]}})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if behaviour[0] == "base" and self.path == "/v1/chat/completions":
            return self.answer(400, {{"error": {{"message": "a chat template is required"}}}})
        if behaviour[0] == "mute":
            return self.answer(500, {{"error": {{"message": "EngineCore encountered an issue"}}}})
        self.answer(200, {{"choices": [{{"text": " Paris"}}]}})
        if behaviour[0] == "die":
            os._exit(0)

    def log_message(self, *_):
        pass

print("INFO Application startup complete.", flush=True)
http.server.ThreadingHTTPServer((config["host"], int(config["port"])), Server).serve_forever()
"""


class StandInEngine:
    """The environment at ``root/env``. `behave` says what the next model server does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._behaviour = root / "behaviour"
        binaries = root / "env" / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "env")], check=True)
        (root / "env" / "quarterdeck.lock").write_text(f"{fingerprint('cpu')} verified")
        self._program(binaries / "ray", _RAY.format(python=binaries / "python"))
        self._program(
            binaries / "vllm", _VLLM.format(python=binaries / "python", behaviour=str(self._behaviour)))
        model = root / "models" / "smollm2-135m-instruct"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        self.behave("serve")

    def behave(self, *words: str) -> None:
        """What it does: ``serve``, ``base`` (cannot chat), ``litter`` (leaves a process), ``slow`` (never loads),
        ``stubborn`` (ignores SIGTERM), ``mute`` (refuses prompts), ``die`` (at the first prompt), ``fail <log file>``.
        """
        self._behaviour.write_text(" ".join(words))

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
