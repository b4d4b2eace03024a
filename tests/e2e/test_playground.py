"""The playground in a browser, with stand-ins for the model servers: what a person does there, from a prompt on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import shot
from tests.support.deck import ROOT, Deck, until
from tests.support.talking import talking
from tests.upstream import Asked, StandIn

pytestmark = [pytest.mark.browser, pytest.mark.valkey]

SUMMIT = "世界上最高的山峰是哪个?"
DEPLOYMENTS = """
from deployments.models import Deployment
from nodes.models import Cluster, Node
node = Node.objects.create(name="here", address="127.0.0.1", user="nobody")
cluster = Cluster.objects.create(name="here", head=node)
for name in "base qwen seer slow thinker".split():
    one = Deployment.objects.create(name=name, model="/m", cluster=cluster, port=%d, state="ready")
    one.replicas.create(number=1, node=node, port=one.port, state="ready")
"""
REDEPLOYED = """
from deployments.models import Replica
from nodes.models import Job, Node
job = Job.objects.create(node=Node.objects.get(), name="server", state="exited")
Replica.objects.filter(deployment__name="qwen").update(server=job)
"""
MOVED = """
from deployments.gateway import routes
from deployments.models import Deployment
for state in %r.split():
    Deployment.objects.get(name="thinker").move(state)
routes.poke()
"""
PASTE = """async (size) => {
  const canvas = new OffscreenCanvas(320, 200);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "crimson";
  pen.fillRect(0, 0, 320, 200);
  const picture = await canvas.convertToBlob({ type: "image/png" });
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([picture, new Uint8Array(size)], "red.png", { type: "image/png" }));
  const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
  document.querySelector("[name=message]").dispatchEvent(paste);
}"""


@pytest.fixture(scope="module")
def models() -> Iterator[StandIn]:
    with talking() as server:
        yield server


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory, models: StandIn) -> Iterator[Deck]:
    """A Quarterdeck of this file's own, where the stand-ins are deployed."""
    running = Deck(tmp_path_factory.mktemp("playground"), PORT_BASE="26600")
    running.wait_for_address()
    in_shell(running, DEPLOYMENTS % models.port)
    yield running
    running.stop()


def in_shell(deck: Deck, code: str) -> None:
    subprocess.run([sys.executable, "manage.py", "shell", "-c", code], cwd=ROOT, check=True, capture_output=True,
                   env={**os.environ, "QUARTERDECK_VAR": str(deck.var)}, timeout=60)


def opened(page: Page, *models: str) -> None:
    page.goto("/playground/?" + "&".join(f"model={name}" for name in models))
    expect(page.locator("[data-sent-to]")).to_contain_text(models[0])


def prompts(models: StandIn) -> list[Asked]:
    """What pages asked, which is always streamed; Quarterdeck itself asks for figures and signs of life meanwhile."""
    return [one for one in models.asked if one.body and one.json.get("stream")]


def send(page: Page, text: str) -> None:
    page.fill("[name=message]", text)
    page.keyboard.press("Enter")


def answers(page: Page, model: str = "") -> Locator:
    """The answers that are shown, of one model or all."""
    found = page.locator("article.answer:visible")
    return found.filter(has=page.locator("[data-model]", has_text=re.compile(f"^{model}$"))) if model else found


def done(answer: Locator, state: str = "done") -> None:
    expect(answer.locator(f"[data-state={state}]")).to_be_visible()


def test_a_base_model_gets_a_completion_by_itself_and_the_page_remembers(page: Page, models: StandIn) -> None:
    opened(page, "base")
    send(page, SUMMIT)
    done(answers(page))
    expect(answers(page).locator("[data-text]")).to_contain_text("珠穆朗玛峰")
    expect(answers(page).locator("[data-note]")).to_contain_text("no chat template (a base model)")
    assert [asked.line.split()[1] for asked in prompts(models)[-2:]] == ["/v1/chat/completions", "/v1/completions"]
    assert prompts(models)[-1].json["prompt"] == SUMMIT
    page.get_by_text("View code").click()
    expect(page.locator("[data-code-text]")).to_contain_text("/v1/completions")
    opened(page, "base")
    expect(page.locator("[data-column] [data-mode-tag]")).to_have_text("completion")
    send(page, SUMMIT)
    done(answers(page))
    assert [asked.line.split()[1] for asked in prompts(models)[-2:]] == ["/v1/completions"] * 2
    shot(page, "playground-base")


def test_an_answer_is_laid_out_with_its_figures_and_its_reasoning_folded(page: Page) -> None:
    opened(page, "thinker")
    send(page, "Reverse a list")
    answer = answers(page)
    done(answer)
    expect(answer.locator("pre code")).to_contain_text("def reverse(head):")
    expect(answer.locator("td").first).to_have_text("walk")
    expect(answer.locator("li").last).to_contain_text("the rest <b>of it</b>")
    for figure in ("ttft", "speed", "tokens", "took", "prompt"):
        assert re.search(r"\d", answer.locator(f"[data-{figure}]").inner_text()), figure
    reasoning = answer.locator("[data-reasoning]")
    expect(reasoning).to_be_hidden()
    answer.get_by_text("Reasoning").click()
    expect(reasoning).to_contain_text("用户问的是世界上最高的山峰")


def test_models_side_by_side_each_have_their_own_stop(page: Page, models: StandIn) -> None:
    opened(page, "qwen")
    page.get_by_role("button", name="Compare with another").click()
    page.get_by_label("Deployment 2").select_option("slow")
    expect(page.locator("[data-sent-to]")).to_have_text("Sent to qwen and slow at the same moment.")
    send(page, SUMMIT)
    done(answers(page, "qwen"))
    slow = answers(page, "slow")
    expect(slow.locator("[data-text]")).to_contain_text("世界上")
    shot(page, "playground-side-by-side")
    slow.get_by_role("button", name="Stop").click()
    done(slow, "stopped")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    until(models.hung_up.is_set, 5, "the model server sees that its reader left")
    send(page, "Again")
    done(answers(page, "qwen").nth(1))
    page.keyboard.press("Escape")
    done(answers(page, "slow").nth(1), "stopped")
    history = [message["role"] for message in prompts(models)[-1].json["messages"]]
    assert history == ["user", "assistant", "user"]
    page.get_by_role("button", name="Remove slow from the comparison").click()
    expect(page.locator("[data-column]")).to_have_count(1)


def test_an_answer_is_given_again_beside_the_first(page: Page) -> None:
    opened(page, "qwen")
    send(page, SUMMIT)
    done(answers(page))
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page).locator("[data-count]")).to_have_text("2 of 2")
    done(answers(page))
    expect(answers(page)).to_have_count(1)
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(answers(page)).to_have_count(2)


def test_an_edited_prompt_goes_on_in_a_conversation_of_its_own(page: Page, models: StandIn) -> None:
    opened(page, "qwen")
    for prompt in ("One?", "Two?"):
        send(page, prompt)
        done(answers(page).last)
    page.wait_for_url("**conversation=*")
    first = page.url
    page.get_by_role("button", name="Edit and resend").nth(1).click()
    expect(page.locator("[name=message]")).to_have_value("Two?")
    send(page, "Three?")
    done(answers(page).last)
    page.wait_for_url(lambda url: url != first)
    expect(page.locator(".prompt .said")).to_have_text(["One?", "Three?"])
    users = [one["content"] for one in prompts(models)[-1].json["messages"] if one["role"] == "user"]
    assert users == ["One?", "Three?"]
    page.goto(first)
    expect(page.locator(".prompt .said")).to_have_text(["One?", "Two?"])


def test_a_conversation_runs_again_after_a_redeploy_old_and_new_beside_each_other(page: Page, deck: Deck) -> None:
    opened(page, "qwen")
    page.fill("[name=temperature]", "0.2")
    send(page, SUMMIT)
    done(answers(page))
    page.wait_for_url("**conversation=*")
    in_shell(deck, REDEPLOYED)
    page.goto("/playground/")
    page.get_by_role("button", name="Conversations").click()
    shot(page, "playground-conversations")
    page.locator("[data-open-conversation]").first.click()
    expect(answers(page).locator("[data-text]")).to_contain_text("珠穆朗玛峰")
    expect(answers(page).locator("[data-earlier]")).to_have_text("before the last start")
    expect(page.locator("[name=temperature]")).to_have_value("0.2")
    page.get_by_role("button", name="Run again").click()
    expect(answers(page)).to_have_count(2)
    done(answers(page).last)
    expect(answers(page).first.locator("[data-earlier]")).to_be_visible()
    expect(answers(page).last.locator("[data-earlier]")).to_be_hidden()
    shot(page, "playground-run-again")


def test_deleting_the_open_conversation_begins_a_new_one(page: Page) -> None:
    opened(page, "qwen")
    send(page, "To be forgotten")
    done(answers(page))
    page.get_by_role("button", name="Conversations").click()
    row = page.locator(".conversation", has_text="To be forgotten")
    row.get_by_role("button", name="Delete this conversation").click()
    expect(row).to_have_count(0)
    expect(answers(page)).to_have_count(0)
    assert "conversation=" not in page.url


def test_the_code_that_is_shown_does_the_same_from_a_shell(page: Page, tmp_path: Path) -> None:
    page.goto("/keys/")
    page.fill("[name=name]", "shell")
    page.get_by_role("button", name="Make a key").click()
    key = page.locator("[data-plain-key]").inner_text()
    opened(page, "qwen")
    send(page, SUMMIT)
    done(answers(page))
    answers(page).get_by_role("button", name="The code of this request").click()
    code = page.locator("[data-code-text]")
    expect(code).to_contain_text(SUMMIT)
    if not Path("/usr/bin/curl").exists():
        pytest.skip("curl is not installed")
    ran = subprocess.run(["bash", "-c", code.inner_text()], capture_output=True, text=True, timeout=30,
                         env={**os.environ, "QUARTERDECK_KEY": key, "no_proxy": "*"})
    assert "珠" in ran.stdout, ran.stderr
    assert ran.stdout.rstrip().endswith("data: [DONE]")
    page.get_by_text("Python", exact=True).click()
    expect(code).to_contain_text("client.chat.completions.create(")
    shot(page, "playground-code")


def test_pictures_are_pasted_shown_and_taken_away(page: Page, models: StandIn) -> None:
    opened(page, "seer", "qwen")
    for _picture in range(2):
        page.evaluate(PASTE, 0)
    pictures = page.locator("[data-composer] .picture")
    expect(pictures).to_have_count(2)
    page.get_by_role("button", name="Remove this picture").first.click()
    expect(pictures).to_have_count(1)
    page.evaluate(PASTE, 6_000_000)
    expect(page.locator("[data-said]")).to_have_text("Pictures may have 5 MB together. Paste a smaller one.")
    send(page, "What is this?")
    expect(answers(page, "seer").locator("[data-text]")).to_have_text("A red square.")
    expect(answers(page, "qwen").locator("[data-why]")).to_contain_text("This model does not take pictures.")
    sent = next(asked.json for asked in reversed(prompts(models)) if asked.json["model"] == "seer")
    assert [part["type"] for part in sent["messages"][0]["content"]] == ["image_url", "text"]
    expect(page.locator(".prompt canvas")).to_have_count(1)
    shot(page, "playground-pictures")
    page.wait_for_url("**conversation=*")
    page.reload()
    drawn = "canvas => canvas.width > 1 && canvas.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
    until(lambda: page.locator(".prompt canvas").evaluate_all(f"all => all.map({drawn})") == [220], 10, "it is red")


def test_a_deployment_that_changes_state_says_so_at_once(page: Page, deck: Deck) -> None:
    opened(page, "thinker", "qwen")
    expect(page.locator("#live")).to_have_text("Live")
    in_shell(deck, MOVED % "stopping stopped")
    column = page.locator("[data-column=thinker]")
    expect(column).to_contain_text("thinker does not answer now: stopped.")
    send(page, "Hello")
    expect(answers(page, "thinker").locator("[data-why]")).to_contain_text("is stopped")
    done(answers(page, "qwen"))
    in_shell(deck, MOVED % "rolling_out ready")
    expect(column.locator(".state")).to_contain_text("ready")


def test_settings_that_cannot_be_are_pointed_at_and_reset(page: Page) -> None:
    opened(page, "qwen")
    page.get_by_text("Penalties, stop and seed").click()
    page.fill("[name=repetition_penalty]", "9")
    page.get_by_text("Penalties, stop and seed").click()
    send(page, "Hello")
    expect(page.locator("[name=repetition_penalty]")).to_be_visible()
    expect(answers(page)).to_have_count(0)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("[name=repetition_penalty]")).to_have_value("1")
    page.locator("[name=message]").press("Enter")
    done(answers(page))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_a_phone(scheme: str, page: Page) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, "qwen", "thinker")
    send(page, "Reverse a list")
    done(answers(page, "thinker"))
    shot(page, f"playground-phone-{scheme}")
    for address in ("/playground/", "/keys/", "/usage/"):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.goto(address)
        expect(page.locator(".nav [aria-current]")).to_be_in_viewport(ratio=0.99)


def test_three_fit_beside_each_other(page: Page) -> None:
    opened(page, "qwen", "seer", "thinker")
    fits = "all => all.every((one) => one.scrollWidth <= one.clientWidth)"
    until(lambda: page.locator("[data-column]").evaluate_all(fits), 10, "the columns hold what is in them")
    send(page, "Reverse a list")
    for model in ("qwen", "seer", "thinker"):
        done(answers(page, model))
    tops = "all => all.map((one) => Math.round(one.getBoundingClientRect().top))"
    until(lambda: len(set(answers(page).evaluate_all(tops))) == 1, 10, "they begin at one height")
    shot(page, "playground-three")


def test_an_alias_added_on_the_deployments_page_is_a_model_of_the_gateway(page: Page) -> None:
    page.goto("/deployments/qwen/")
    page.get_by_label("New alias").fill("org/gpt-4o-a-rather-long-name-of-a-model")
    page.keyboard.press("Enter")
    aliases = page.locator("#aliases")
    expect(aliases.get_by_text("org/gpt-4o-a-rather-long-name-of-a-model")).to_be_visible()
    shot(page, "aliases")
    list_models = """async () => {
      const token = (await (await fetch("/playground/?model=qwen")).text()).match(/qs-[\\w:.-]+/)[0];
      const models = await fetch("/v1/models", { headers: { Authorization: `Bearer ${token}` } });
      return (await models.json()).data.map((one) => [one.id, one.root]);
    }"""
    alias = ["org/gpt-4o-a-rather-long-name-of-a-model", "qwen"]
    until(lambda: alias in page.evaluate(list_models), 10, "the gateway was told of the alias")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "aliases-phone")
    aliases.get_by_role("button", name="Remove the alias").click()
    expect(aliases.get_by_text("org/gpt-4o")).to_have_count(0)
