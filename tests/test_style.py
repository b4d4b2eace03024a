"""The style budget of docs/design.md holds for every file of the project."""

from __future__ import annotations

import ast
import io
import os
import tokenize
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for app in ("controlplane", "nodes", "deployments")
    for path in (ROOT / app).rglob("*.py")
    if "migrations" not in path.parts
)


def functions(paths: list[Path]) -> Iterator[tuple[str, int]]:
    """Every function's place and its lines from ``def`` to the last one, docstring left out."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", _length(node)


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    documented = (doc.end_lineno or doc.lineno) - doc.lineno + 1 if doc else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - documented


def files() -> Iterator[Path]:
    """Everything that is part of the project, not what running it leaves."""
    left = {".git", ".venv", "var", "staticfiles", "__pycache__", "node_modules"}
    for directory, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in left and not name.endswith("_cache")]
        yield from (Path(directory) / name for name in names)


def comment_lines(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(1 for token in tokens if token.type == tokenize.COMMENT)


def ninetieth(values: list[int]) -> float:
    return quantiles(values, n=10)[-1]


def test_no_function_is_longer_than_sixty_lines() -> None:
    assert [found for found in functions(SOURCES) if found[1] > 60] == []


def test_most_functions_are_short() -> None:
    lengths = [length for _, length in functions(SOURCES)]
    assert median(lengths) <= 8
    assert ninetieth(lengths) <= 30


def test_files_stay_readable_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}
    assert ninetieth(list(lengths.values())) <= 300


def test_comments_are_few_and_there() -> None:
    texts = [path.read_text() for path in SOURCES]
    lines = sum(len(text.splitlines()) for text in texts)
    assert 0.02 <= sum(map(comment_lines, texts)) / lines <= 0.08


@pytest.mark.parametrize("marker", ["TO" + "DO", "FIX" + "ME", "X" + "XX"])
def test_nothing_is_left_for_later(marker: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if marker in path.read_text()] == []


def test_no_registry_is_named_in_the_repository() -> None:
    """Packages come from wherever pip is told to take them; a host named here would bypass a mirror."""
    hosts = (
        "py" + "pi.org",
        "python" + "hosted.org",
        "npm" + "js.",
        "deb." + "debian.org",
        "archive.ubuntu" + ".com",
    )
    named = [f"{path}: {host}" for path in files() for host in hosts if host.encode() in path.read_bytes()]
    assert named == []
