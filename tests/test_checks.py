"""Wrong configuration is named before anything starts, with the variable to set."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.core.checks.registry import registry
from pytest_django import Settings


def ids(deploy: bool = False) -> set[str]:
    """What Quarterdeck's own checks find; Django's are Django's to test."""
    own = [check for check in registry.get_checks(deploy) if check.__module__ == "controlplane.checks"]
    return {str(message.id) for check in own for message in check(app_configs=None, databases=None)}


@pytest.fixture(autouse=True)
def sound(settings: Settings, private_redis: None, tmp_path: Path) -> None:
    settings.VAR_DIR = tmp_path
    settings.FIELD_KEY = Fernet.generate_key().decode()


def test_the_defaults_pass() -> None:
    assert ids() == set()


def test_a_var_directory_too_deep_for_a_socket_is_refused(settings: Settings) -> None:
    settings.EMBEDDED_VALKEY = True
    settings.REDIS_URL = "unix:///" + "deep/" * 30 + "valkey.sock"
    assert ids() == {"quarterdeck.E001"}


def test_a_redis_address_without_a_scheme_is_refused(settings: Settings) -> None:
    settings.EMBEDDED_VALKEY = False
    settings.REDIS_URL = "cache.internal:6379"
    assert ids() == {"quarterdeck.E002"}


def test_a_field_key_that_cannot_encrypt_is_refused(settings: Settings) -> None:
    settings.FIELD_KEY = "hunter2"
    assert ids() == {"quarterdeck.E003"}


@pytest.mark.parametrize("base", [80, 65200])
def test_a_block_of_ports_that_does_not_exist_is_refused(settings: Settings, base: int) -> None:
    settings.PORT_BASE = base
    assert ids() == {"quarterdeck.E004"}


def test_a_secret_that_others_can_read_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "field.key").write_text("x")
    (tmp_path / "field.key").chmod(0o644)
    assert ids() == {"quarterdeck.W001"}


def test_production_is_told_to_use_shared_servers_and_named_hosts(settings: Settings) -> None:
    settings.EMBEDDED_VALKEY = True
    settings.ALLOWED_HOSTS = ["*"]
    assert {"quarterdeck.W002", "quarterdeck.W003", "quarterdeck.W004"} <= ids(deploy=True)


def test_production_as_the_manual_says_passes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EMBEDDED_VALKEY = False
    settings.REDIS_URL = "redis://valkey:6379/0"
    settings.ALLOWED_HOSTS = ["deck.example.org"]
    monkeypatch.setitem(settings.DATABASES["default"], "ENGINE", "django.db.backends.postgresql")
    assert ids(deploy=True) == set()
