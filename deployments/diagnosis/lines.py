"""A line of vLLM's log: who wrote it, where, and what it says. Pure.

    (EngineCore pid=1) (RayWorkerProc pid=2, ip=10.0.0.2) (Worker_PP1 pid=2) INFO 11-22 06:58:05 [x.py:1] text

Tags of the processes that a line came through, outermost first and coloured by Ray; level and time; the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
TAG = re.compile(r"\((?P<process>[A-Za-z][\w-]*) pid=(?P<pid>\d+)(?:, ip=(?P<ip>[0-9a-fA-F.:]+))?\) ?")
VLLM_HEAD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?")
RAY_HEAD = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s(DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+ -- ")
RANK = re.compile(r"\bworld_size=\d+ rank=(\d+) |^rank (\d+) in world size \d+ is")  # a worker says which one it is
REPEATED = re.compile(r" ?\[repeated \d+x across cluster\].*$")


class Line(NamedTuple):
    """``process`` and ``pid`` are the last tag's ("Worker_PP1"), ``host`` the address of the writer's host, or ""."""

    process: str
    host: str
    level: str
    text: str
    pid: str = ""


def plain(text: str) -> str:
    """Without colours, and with a line for each state of a progress bar."""
    return ANSI.sub("", text).replace("\r", "\n")


def parse(line: str) -> Line:
    """One line of `plain` text."""
    process = host = level = pid = ""
    at = 0
    while tag := TAG.match(line, at):
        process, host, pid = tag["process"], tag["ip"] or host, tag["pid"]
        at = tag.end()
    if head := VLLM_HEAD.match(line, at) or RAY_HEAD.match(line, at):
        level, at = head[1], head.end()
    return Line(process, host, level, REPEATED.sub("", line[at:]), pid)
