"""Settings that are made once and kept: whole or not at all, and the first one stays."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from controlplane import settings


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "VAR_DIR", tmp_path / "var")
    monkeypatch.delenv("A_SECRET", raising=False)
    return tmp_path / "var"


def test_a_secret_is_made_once_and_only_its_owner_reads_it(var: Path) -> None:
    assert settings.kept_secret("A_SECRET", "a.key", lambda: "first") == "first"
    assert settings.kept_secret("A_SECRET", "a.key", lambda: "second") == "first"
    assert stat.S_IMODE((var / "a.key").stat().st_mode) == 0o600
    assert [path.name for path in var.iterdir()] == ["a.key"]


def test_the_environment_goes_first_and_writes_nothing(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "mine")
    assert settings.kept_secret("A_SECRET", "a.key", lambda: "other") == "mine"
    assert not var.exists()


def test_a_process_that_is_killed_while_it_writes_leaves_no_empty_secret(var: Path) -> None:
    killed = f"""
import os, signal
from pathlib import Path
from controlplane import settings
settings.VAR_DIR = Path({str(var)!r})
settings.kept_secret("A_SECRET", "a.key", lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
    ended = subprocess.run([sys.executable, "-c", killed], cwd=settings.BASE_DIR, timeout=60, check=False)
    assert ended.returncode == -9
    assert settings.kept_secret("A_SECRET", "a.key", lambda: "whole") == "whole"


def test_of_many_who_start_at_once_all_have_the_secret_of_the_first(var: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: settings.kept_secret("A_SECRET", "a.key", lambda: f"{n}" * 50), range(8)))
    assert len(set(made)) == 1
    assert made[0] == (var / "a.key").read_text()
    assert len(made[0]) == 50


@pytest.mark.parametrize("typed", ["²", "1.5", "-1", "many"])
def test_a_number_that_is_none_is_refused_with_a_sentence(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT_BASE", typed)
    with pytest.raises(ImproperlyConfigured, match="PORT_BASE must be a whole number"):
        settings.number("PORT_BASE", 1)
