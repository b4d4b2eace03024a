"""bench/gateway: how much the gateway adds to a stream, how much it carries, and how fast it lets go.

The same compiled model server and load (gateway_wire.c) for every subject: no proxy, nginx, the gateway and
LiteLLM, one after the other within each repetition, medians over the repetitions. The proxies have core 0,
the ends core 1. Quote ratios: absolute figures are this machine's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gateway_engine import kept
from gateway_subjects import PATH, Subject, direct, gateway, litellm, nginx, process, running

HERE = Path(__file__).resolve().parent
TOKENS = 128
PACE_MS = 20
Figures = dict[str, list[dict[str, float]]]


def load(wire: Path, subject: Subject, streams: int, seconds: float, pace: int) -> dict[str, float]:
    """One run; adds the processor time of the subject for each thousand chunks."""
    before = subject.cpu()
    argv = [
        str(wire),
        "load",
        str(subject.port),
        str(streams),
        str(seconds),
        str(pace),
        str(TOKENS),
        PATH,
        "m",
    ]
    done = subprocess.run(["taskset", "-c", "1", *argv, subject.key], capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(f"{subject.name} with {streams} streams: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    # The processor was also used while the streams came up: count those chunks as well.
    ramp = (PACE_MS * TOKENS / 1e3 if pace else 0.2) * (0.5 if pace else 1)
    chunks = found["chunks_per_second"] * (seconds + ramp)
    found["cpu_us_per_chunk"] = (subject.cpu() - before) / chunks * 1e6
    found["rss_mib"] = subject.rss()
    return found


def ask(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def begin(subject: Subject, **headers: int) -> socket.socket:
    """A streamed request on a connection of its own."""
    body = b'{"model":"m","stream":true,"messages":[]}'
    lines = "".join(f"X-{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {PATH} HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {subject.key}\r\n{lines}"
    connection = socket.create_connection(("127.0.0.1", subject.port))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def cancel_ms(subject: Subject, upstream: int, first: int) -> float:
    """Milliseconds from the client's hang-up to the model server's seeing it; ``first``: delay of the token."""
    connection = begin(subject, Chunks=10_000, Pace=5, First=first)
    time.sleep(0.15)
    if not first:
        connection.recv(65536)
    before = ask(upstream, "/aborts")["count"]
    connection.close()
    left = time.monotonic()
    while (seen := ask(upstream, "/aborts"))["count"] == before:
        if time.monotonic() > left + 5:
            return 5000.0
        time.sleep(0.001)
    return max(0.0, (seen["at"] - left) * 1e3)


def stuck_mib(subject: Subject) -> float:
    """What a client costs that does not read its endless stream."""
    before = subject.rss()
    with begin(subject, Chunks=10_000_000):
        time.sleep(1.5)
        return subject.rss() - before


def whole_us(subject: Subject, requests: int = 1500) -> float:
    """Microseconds of processor time for a request that does not stream."""
    connection = http.client.HTTPConnection("127.0.0.1", subject.port)
    body = b'{"model":"m","messages":[{"role":"user","content":"Who?"}]}'
    before = subject.cpu()
    for _ in range(requests):
        connection.request("POST", PATH, body, subject.headers)
        connection.getresponse().read()
    connection.close()
    return (subject.cpu() - before) / requests * 1e6


def middle(runs: list[dict[str, float]], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


def compare(figures: dict[tuple[str, int], list[dict[str, float]]], paced: list[int]) -> dict[str, Any]:
    """The bench's figures from all runs; None where a subject is not installed."""

    def ratio(other: str, streams: int, figure: str) -> float | None:
        if (other, streams) not in figures:
            return None
        ours, theirs = (middle(figures[name, streams], figure) for name in ("gateway", other))
        return round(ours / theirs, 3)

    def added(name: str, quantile: str) -> dict[str, float]:
        found = {}
        for streams in paced:
            if (name, streams) in figures:
                pairs = zip(figures[name, streams], figures["direct", streams], strict=True)
                key = f"ttft_{quantile}_ms"
                found[str(streams)] = round(statistics.median(one[key] - two[key] for one, two in pairs), 2)
        return found

    most = paced[-1]
    return {
        "added_ttft_p50_ms": added("gateway", "p50"),
        "added_ttft_p99_ms": added("gateway", "p99"),
        "nginx_added_ttft_p50_ms": added("nginx", "p50") or None,
        f"rate_kept_{most}": ratio("direct", most, "chunks_per_second"),
        "chunks_vs_nginx": ratio("nginx", 0, "chunks_per_second"),
        "chunks_vs_litellm": ratio("litellm", 0, "chunks_per_second"),
        "cpu_per_chunk_vs_nginx": {str(streams): ratio("nginx", streams, "cpu_us_per_chunk") for streams in paced},
        "rss_mib": round(max(run["rss_mib"] for run in figures["gateway", most]), 1),
        "chunks_per_second": {
            name: round(middle(figures[name, 0], "chunks_per_second")) for name, n in figures if n == 0
        },
    }


def measure(wire: Path, here: Path, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[tuple[str, int], list[dict[str, float]]] = {}

    def note(subject: Subject, streams: int) -> None:
        run = load(wire, subject, streams or 32, options.seconds, PACE_MS if streams else 0)
        figures.setdefault((subject.name, streams), []).append(run)

    with process([str(wire), "serve"], 1, here / "wire.err", heard=True) as server:
        upstream = int(server.stdout.readline()) if server.stdout else 0
        with running([direct, nginx, gateway], upstream, here) as subjects:
            for _ in range(options.repeat):
                for streams in (*options.streams, 0):  # 0: 32 streams without a delay
                    for subject in subjects.values():
                        note(subject, streams)
            alone = single_requests(subjects["gateway"], upstream)
        # By itself and once: it goes on working off what it is behind with, beside whatever comes next.
        with running([litellm], upstream, here) as others:
            for subject in others.values():
                note(subject, 0)
    return {**compare(figures, options.streams), **alone}


def single_requests(ours: Subject, upstream: int) -> dict[str, Any]:
    """How fast one request lets go, and what one costs."""
    return {
        "cancel_ms": {
            "before_first_token": round(max(cancel_ms(ours, upstream, 5000) for _ in range(10)), 1),
            "streaming": round(max(cancel_ms(ours, upstream, 0) for _ in range(10)), 1),
        },
        "stuck_reader_mib": round(stuck_mib(ours), 2),
        "cpu_us_whole_request": round(whole_us(ours)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/gateway", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="alternating repetitions (default: 3)")
    parser.add_argument("--seconds", type=float, default=TOKENS * PACE_MS / 1e3, help="of each run's window")
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 128, 512], help="numbers of paced streams")
    parser.add_argument("--vllm", help="a vllm program for CPUs: also measure with a real engine")
    parser.add_argument("--model", help="the directory of a small model for it")
    parser.add_argument("--only-engine", action="store_true", help="nothing but that")
    options = parser.parse_args()
    if not shutil.which("gcc"):
        sys.exit("bench/gateway compiles its model server and load: install gcc.")
    with tempfile.TemporaryDirectory(prefix="qd-bench-") as directory:
        here = Path(directory)
        wire = here / "gateway_wire"
        subprocess.run(["gcc", "-O2", "-o", str(wire), str(HERE / "gateway_wire.c")], check=True)
        found = {} if options.only_engine else measure(wire, here, options)
        share = kept(options.vllm, options.model, here, options.repeat) if options.vllm else None
        print(json.dumps({**found, "engine_tokens_vs_direct": share}))
