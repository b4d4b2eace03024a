"""Several servers from one page in a browser: the bad say why, the good are approved together; then one is removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import shot
from tests.support import sshd as sshd_support
from tests.support.sshd import Sshd

pytestmark = [pytest.mark.browser, pytest.mark.sshd, pytest.mark.valkey]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Sshd]]:
    started = [sshd_support.start(tmp_path / f"server{n}", f"127.0.0.{61 + n}") for n in range(3)]
    for server in started:
        server.authorized_keys.write_text((tmp_path / "server0" / "user_key.pub").read_text())
    yield started
    for server in started:
        server.stop()


def test_a_list_becomes_nodes_and_one_of_them_leaves_no_trace(page: Page, servers: list[Sshd]) -> None:
    page.goto("/nodes/new/")
    page.get_by_text("Several", exact=True).click()
    page.fill("[name=user]", servers[0].user)
    typed = [f"many-{n} = {server.address}:{server.port}" for n, server in enumerate(servers, start=1)]
    page.locator("[name=hosts]").press_sequentially("\n".join([*typed, "172.18.81.300"]))
    expect(page.locator("#understood")).to_contain_text("300 is not a number from 0 to 255.")
    page.get_by_text("Private key", exact=True).first.click()
    page.fill("[name=private_key]", servers[0].key)
    page.fill("[name=labels]", "rack-9")
    shot(page, "30-several-servers")
    page.get_by_role("button", name="Show their host keys").click()

    expect(page.locator("[data-fingerprint]")).to_have_text([server.host_key.fingerprint for server in servers])
    page.locator("[data-candidate=many-3] input").uncheck()
    shot(page, "31-host-keys")
    page.get_by_role("button", name="Approve the ticked keys").click()
    expect(page.locator("#head")).to_contain_text("2 servers are registered.", timeout=30_000)
    expect(page.locator("[data-candidate=many-3]")).to_contain_text("waits for approval")
    shot(page, "32-registered")

    page.goto("/nodes/many-1/")
    expect(page.locator("#facts")).to_contain_text("rack-9")
    page.get_by_role("button", name="Remove").first.click()
    shot(page, "33-remove")
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.wait_for_url("**/nodes/", timeout=60_000)
    assert " quarterdeck" not in servers[0].authorized_keys.read_text()
    assert " quarterdeck" in servers[1].authorized_keys.read_text()
    assert not (servers[0].folder / "home" / ".quarterdeck").exists()
    page.goto("/nodes/many-2/")
    page.get_by_role("button", name="Remove").first.click()
    page.get_by_role("dialog").get_by_label("Only forget it").check()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.wait_for_url("**/nodes/")
