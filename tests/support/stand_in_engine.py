"""A stand-in for the engine on a node: an environment whose `ray` and `vllm` are small programs that play their parts.

For the logic around them (ports, phases, failures, stops); what real Ray and vLLM do is tested with the real ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nodes.recipes.python_env import fingerprint

# Its head keeps a line open to each worker, as real Ray does, and notes who is there; its Python module reads that.
_RAY = """#!{python}
import json, pathlib, socket, sys, threading, time
options = dict(word.split("=", 1) for word in sys.argv if "=" in word)
resources = {{"CPU": 2.0, "GPU": float(options["--num-gpus"]), **json.loads(options.get("--resources", "{{}}"))}}
own = {{"NodeManagerAddress": options["--node-ip-address"], "Resources": resources}}
if "--head" not in sys.argv:
    host, port = options["--address"].split(":")
    line = socket.create_connection((host, int(port)))
    line.sendall(json.dumps(own).encode() + b"\\n")
    print("Ray runtime started.", flush=True)
    line.recv(1)
    sys.exit("the head is gone")
own["Resources"]["node:__internal_head__"] = 1.0
nodes = {{}}
lock = threading.Lock()

def note(node, alive, why=""):
    with lock:
        key = node["NodeManagerAddress"]
        nodes[key] = {{**node, "NodeID": key, "Alive": alive, "DeathReasonMessage": why}}
        file = pathlib.Path({nodes!r})
        file.with_suffix(".new").write_text(json.dumps(list(nodes.values())))
        file.with_suffix(".new").replace(file)

def serve(connection):
    with connection, connection.makefile() as lines:
        said = lines.readline()
        if said:
            note(json.loads(said), True)
            lines.readline()
            note(json.loads(said), False, "its line ended")

listener = socket.create_server((own["NodeManagerAddress"], int(options["--port"])))
note(own, True)
print("Ray runtime started.", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
_RAY_STATE = """
import json, pathlib
class GlobalState:
    def _initialize_global_state(self, options): pass
    def node_table(self): return json.loads(pathlib.Path({nodes!r}).read_text())
    def total_resources_per_node(self): return {{node["NodeID"]: node["Resources"] for node in self.node_table()}}
    available_resources_per_node = total_resources_per_node
    def placement_group_table(self): return {{}}
"""
_RAYLET = """
class GcsClientOptions:
    create = staticmethod(lambda *_, **__: None)
class GcsClient:
    def __init__(self, address): pass
    def internal_kv_get(self, *_): return b'{"ray_version": "2.60.0", "python_version": "3.11.7"}'
"""

_VLLM = """#!{python}
import http.server, json, os, pathlib, signal, sys, time
behaviour = pathlib.Path({behaviour!r}).read_text().split()
config = {{}}
for line in pathlib.Path(sys.argv[3]).read_text().splitlines():
    name, separator, value = line.partition(": ")
    if separator or line.startswith("- "):
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

    def stream(self):
        # Two tokens that say which server they are of; the second once the file go-on is there.
        token = {{"choices": [{{"index": 0, "delta": {{"content": config["port"]}}}}]}}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: " + json.dumps(token).encode() + b"\\n\\n")
        while not pathlib.Path({behaviour!r}).with_name("go-on").exists():
            time.sleep(0.02)
        self.wfile.write(b"data: " + json.dumps(token).encode() + b"\\n\\ndata: [DONE]\\n\\n")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            return self.stream()
        if behaviour[0] == "base" and self.path == "/v1/chat/completions":
            return self.answer(400, {{"error": {{"message": "a chat template is required"}}}})
        if behaviour[0] == "mute":
            return self.answer(500, {{"error": {{"message": "EngineCore encountered an issue"}}}})
        self.answer(200, {{"choices": [{{"text": " Paris"}}], "port": config["port"]}})
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
        nodes = str(root / "env" / "ray-nodes.json")
        self._program(binaries / "ray", _RAY.format(python=binaries / "python", nodes=nodes))
        self._ray_module(next((root / "env" / "lib").glob("python3*/site-packages")) / "ray", nodes)
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
    def _ray_module(place: Path, nodes: str) -> None:
        (place / "_private").mkdir(parents=True)
        (place / "__init__.py").touch()
        (place / "_raylet.py").write_text(_RAYLET)
        (place / "_private" / "state.py").write_text(_RAY_STATE.format(nodes=nodes))

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
