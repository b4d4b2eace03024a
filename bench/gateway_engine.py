"""A real vLLM on this machine's processors, asked directly and through the gateway: the share of its tokens kept."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway_subjects import Subject, answers, free_port, gateway, process

STREAMS, TOKENS, PATIENCE = 16, 48, 420
KEY = "upstream"  # what the bench's deployment has
_ENV = {
    "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def kept(program: str, model: str, here: Path, repeat: int) -> float | None:
    """Tokens a second through the gateway as a share of the direct ones, alternating, the median over repetitions."""
    port = free_port()
    argv = [program, "serve", model, "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", "256", "--max-num-seqs", str(STREAMS)]
    with process(argv, None, here / "vllm.err", _ENV):
        direct = Subject("direct", port, key=KEY)
        if not answers(direct, PATIENCE):
            print(f"vLLM does not answer: {(here / 'vllm.err').read_text()[-500:]}", file=sys.stderr)
            return None
        with gateway(port, here) as through:
            if through is None or not answers(through, 120):
                print(f"The gateway does not answer: {(here / 'gateway.err').read_text()[-500:]}", file=sys.stderr)
                return None
            pairs = [pair(through, direct, number % 2 == 0) for number in range(repeat + 1)][1:]
    print(f"tokens a second through the gateway and directly: {pairs}", file=sys.stderr)
    return round(statistics.median(ours / theirs for ours, theirs in pairs), 3)


def pair(through: Subject, direct: Subject, first: bool) -> tuple[float, float]:
    """Both right after each other, now this one first and now that one: other work changes by the second."""
    if first:
        return tokens_per_second(through), tokens_per_second(direct)
    theirs = tokens_per_second(direct)
    return tokens_per_second(through), theirs


def tokens_per_second(subject: Subject) -> float:
    began = time.monotonic()
    with ThreadPoolExecutor(STREAMS) as threads:
        counts = list(threads.map(lambda number: _stream(subject, number), range(STREAMS)))
    return round(sum(counts) / (time.monotonic() - began), 1)


def _stream(subject: Subject, number: int) -> int:
    """One completion; gives the number of its events, which are its tokens."""
    connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=120)
    asked = {"model": "m", "prompt": f"{number}:", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(asked), subject.headers)
    answer = connection.getresponse()
    count = sum(line.startswith(b"data: {") for line in answer)
    connection.close()
    return count
