"""A stand-in for Hugging Face and ModelScope: their file APIs over a local HTTP server, with a few small files.

It can end a download in the middle, ask for a token, send on to another port as hubs do to their storage, and lie.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "1f2e3d4c5b6a79880f0e0d0c0b0a090807060504"
MODEL = "lab/tiny"


class StandInHub:
    """What it has and how it behaves; ``asked`` is every request it got: path, Range, Authorization."""

    def __init__(self) -> None:
        self.files = {
            "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
            "tokenizer.json": b"{}",
            "model-00001-of-00002.safetensors": bytes(range(256)) * 4096,
            "model-00002-of-00002.safetensors": b"quarterdeck" * 50_000,
            "pytorch_model.bin": b"the same again",
            "README.md": b"# tiny",
            ".gitattributes": b"*",
        }
        self.token = ""
        self.cut_after = 0  # bytes after which the next downloads end; 0: never
        self.cuts = 0  # how many of them
        self.wrong_checksum = False
        self.asked: list[tuple[str, str, str]] = []
        self.storage = ""  # where downloads are sent on to
        self.lock = threading.Lock()

    def digest(self, name: str) -> str:
        return hashlib.sha256(self.files[name] + (b"?" if self.wrong_checksum else b"")).hexdigest()

    def hugging_face(self) -> dict[str, Any]:
        large = [name for name in self.files if len(self.files[name]) > 1000]
        siblings = [
            {"rfilename": name, "size": len(data), **({"lfs": {"sha256": self.digest(name)}} if name in large else {})}
            for name, data in self.files.items()
        ]
        return {"id": MODEL, "sha": COMMIT, "siblings": siblings}

    def modelscope(self) -> dict[str, Any]:
        files = [
            {"Path": name, "Size": len(data), "Sha256": self.digest(name), "Type": "blob", "Revision": COMMIT}
            for name, data in self.files.items()
        ]
        return {"Code": 200, "Data": {"Files": files}}


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        parts, hub = urlsplit(self.path), self.hub
        with hub.lock:
            hub.asked.append((self.path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        shown = self.headers.get("Authorization")
        if hub.token and shown != f"Bearer {hub.token}" and not parts.path.startswith("/storage/"):
            return self.send_error(401)
        if parts.path == f"/api/models/{MODEL}/revision/main":
            self._json(hub.hugging_face())
        elif parts.path == f"/api/v1/models/{MODEL}/repo/files":
            self._json(hub.modelscope())
        elif parts.path == f"/api/v1/models/{MODEL}/repo":
            self._file(parse_qs(parts.query)["FilePath"][0])
        elif parts.path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            self._send_on(parts.path.rpartition("/")[2])
        elif parts.path.startswith("/storage/"):
            self._file(parts.path.removeprefix("/storage/"))
        else:
            self.send_error(404)
        return None

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_on(self, name: str) -> None:
        if not self.hub.storage:
            return self._file(name)
        self.send_response(302)
        self.send_header("Location", f"{self.hub.storage}/storage/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _file(self, name: str) -> None:
        data = self.hub.files[name]
        at = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if at else 200)
        self.send_header("Content-Length", str(len(data) - at))
        self.end_headers()
        with self.hub.lock:
            cut = self.hub.cuts > 0 and len(data) - at > self.hub.cut_after > 0
            self.hub.cuts -= cut
        self.wfile.write(data[at : at + self.hub.cut_after] if cut else data[at:])
        if cut:
            self.close_connection = True


@contextmanager
def serving(hub: StandInHub, address: str = "127.0.0.1") -> Iterator[str]:
    """The hub's address while it serves, on an address of this machine."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer((address, 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
