"""The playground's modules, driven in Chromium: requests hold what was asked for, code makes exactly that request."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.test_browser_modules import RENDER, SITE, serve

pytestmark = pytest.mark.browser

SETTINGS = {
    "mode": "auto", "system": "", "temperature": "0.7", "top_p": "1", "max_tokens": "512", "repetition_penalty": "1",
    "presence_penalty": "0", "frequency_penalty": "0", "stop": "", "seed": "",
}  # fmt: skip
EVERYTHING = {
    "system": "Be \"short\".", "top_p": "0.9", "repetition_penalty": "1.05", "presence_penalty": "-0.5",
    "frequency_penalty": "0.25", "stop": "END, \\n\\n,a\\,b", "seed": "42",
}  # fmt: skip
PROMPT = {"text": "It's \\ \"quoted\" $HOME `id` – 世界上最高的山峰是哪个?\nnext", "images": []}
PICTURE = "data:image/png;base64," + "A" * 60
REQUEST = """async ([mode, settings, history, prompt]) => {
  const { requestFor } = await import("/static/js/request.js");
  return requestFor("qwen", mode, settings, history, prompt);
}"""
CODE = """async ([language, request]) => {
  const { codeOf } = await import("/static/js/code.js");
  return codeOf(language, "http://deck.test/v1", request);
}"""
RUN_SCRIPT = """async (code) => {
  let made;
  class OpenAI {
    constructor(options) {
      const create = (of) => async (body) => ((made = { options, of, body }), [{ choices: [] }]);
      this.chat = { completions: { create: create("chat") } };
      this.completions = { create: create("completion") };
    }
  }
  const process = { env: { QUARTERDECK_KEY: "qd-key" }, stdout: { write() {} } };
  const body = code.replace(/^import .*$/m, "");
  const AsyncFunction = (async () => {}).constructor;
  await new AsyncFunction("OpenAI", "process", body)(OpenAI, process);
  return made;
}"""
STREAM = """async (events) => {
  const { complete } = await import("/static/js/stream.js");
  const bytes = new TextEncoder().encode(events.join(""));
  const pieces = new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += 7) controller.enqueue(bytes.slice(at, at + 7));
      controller.close();
    },
  });
  window.fetch = async () => new Response(pieces);
  let last;
  await complete({ path: "/v1/x", body: {} }, "t", undefined, (reply) => (last = structuredClone({ ...reply })));
  return last;
}"""


@pytest.fixture(scope="module")
def browser_page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(bypass_csp=True)  # code that is shown is run here, to see what it does
    page.route("**/*", serve)
    yield page
    page.close()


@pytest.fixture
def page(browser_page: Page) -> Page:
    browser_page.goto(SITE)
    return browser_page


def request(page: Page, mode: str = "chat", prompt: object = PROMPT, history: object = (), **settings: str) -> Any:
    return page.evaluate(REQUEST, [mode, SETTINGS | settings, history, prompt])


# --- requests ---


def test_a_request_holds_only_what_differs_from_doing_nothing(page: Page) -> None:
    made = request(page, prompt={"text": "Hello"})
    assert made == {
        "path": "/v1/chat/completions",
        "body": {
            "model": "qwen", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.7,
            "max_tokens": 512, "stream": True, "stream_options": {"include_usage": True},
        },
    }  # fmt: skip


def test_every_parameter_reaches_the_request_as_a_number_or_list(page: Page) -> None:
    body = request(page, **EVERYTHING)["body"]
    assert body["messages"][0] == {"role": "system", "content": 'Be "short".'}
    assert (body["top_p"], body["repetition_penalty"], body["seed"]) == (0.9, 1.05, 42)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (-0.5, 0.25)
    assert body["stop"] == ["END", "\n\n", "a,b"]


def test_no_more_than_four_texts_to_stop_at_are_sent(page: Page) -> None:
    assert request(page, stop="a,b,,c,d,e")["body"]["stop"] == ["a", "b", "c", "d"]


def test_a_conversation_is_sent_with_its_answers(page: Page) -> None:
    history = [{"prompt": {"text": "One?", "images": [PICTURE]}, "answer": "Two."}]
    messages = request(page, history=history, prompt={"text": "And?"})["body"]["messages"]
    picture = {"type": "image_url", "image_url": {"url": PICTURE}}
    assert messages == [
        {"role": "user", "content": [picture, {"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "And?"},
    ]


def test_a_picture_alone_is_a_prompt(page: Page) -> None:
    (message,) = request(page, prompt={"text": "", "images": [PICTURE]})["body"]["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url"]


def test_a_completion_is_the_text_alone(page: Page) -> None:
    history = [{"prompt": {"text": "One?"}, "answer": "Two."}]
    made = request(page, "completion", history=history, system="Be short.")
    assert made["path"] == "/v1/completions"
    assert made["body"]["prompt"] == PROMPT["text"]
    assert "messages" not in made["body"]


# --- code ---


def code(page: Page, language: str, made: object) -> str:
    return str(page.evaluate(CODE, [language, made])["text"])


@pytest.fixture(params=["chat", "completion"])
def made(request: pytest.FixtureRequest, page: Page) -> Any:
    return page.evaluate(REQUEST, [request.param, SETTINGS | EVERYTHING, [], PROMPT])


def test_the_curl_command_sends_exactly_this_request(page: Page, made: Any) -> None:
    shell = 'curl() { printf "%s\\0" "$@"; }\n' + code(page, "curl", made)
    ran = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True,
                         env={"QUARTERDECK_KEY": "qd-key"})
    said = ran.stdout.split("\0")
    assert said[1] == f"http://deck.test{made['path']}"
    assert "Authorization: Bearer qd-key" in said
    assert json.loads(said[said.index("-d") + 1]) == made["body"]


def test_the_python_program_sends_exactly_this_request(
    page: Page, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    def create(**given: Any) -> list[Any]:
        sent.append(given)
        return [SimpleNamespace(choices=[SimpleNamespace(text="Hi", delta=SimpleNamespace(content="Hi"))])]

    completions = SimpleNamespace(create=create)
    openai = ModuleType("openai")
    openai.OpenAI = lambda **_given: SimpleNamespace(  # type: ignore[attr-defined]
        chat=SimpleNamespace(completions=completions), completions=completions)
    monkeypatch.setitem(sys.modules, "openai", openai)
    monkeypatch.setenv("QUARTERDECK_KEY", "qd-key")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code(page, "python", made), {})  # noqa: S102  (the program that is shown)
    assert printed.getvalue() == "Hi"
    assert sent[0].pop("extra_body") == {"repetition_penalty": 1.05}
    assert sent[0] == {name: value for name, value in made["body"].items() if name != "repetition_penalty"}


def test_the_javascript_program_sends_exactly_this_request(page: Page, made: Any) -> None:
    ran = page.evaluate(RUN_SCRIPT, code(page, "javascript", made))
    assert ran["body"] == made["body"]
    assert ran["of"] == ("chat" if "messages" in made["body"] else "completion")
    assert ran["options"] == {"baseURL": "http://deck.test/v1", "apiKey": "qd-key"}


def test_a_picture_is_shortened_in_code_and_that_is_said(page: Page) -> None:
    made = request(page, prompt={"text": "What?", "images": [PICTURE]})
    shown = page.evaluate(CODE, ["curl", made])
    assert shown["shortened"]
    assert "data:image/png;base64,…" in shown["text"]
    assert "AAAA" not in shown["text"]


# --- the stream ---


def event(delta: object = None, **more: object) -> str:
    choices = [{"index": 0, "delta": delta, "finish_reason": None}] if delta is not None else []
    return f"data: {json.dumps({'choices': choices, **more}, ensure_ascii=False)}\n\n"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart_from_the_answer(name: str, page: Page) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 40}
    deltas = [{"role": "assistant", "content": ""}, {name: "用户"}, {name: "问"}, {"content": "珠穆"}]
    said = page.evaluate(STREAM, [*map(event, deltas), event(usage=usage), "data: [DONE]\n\n"])
    assert (said["text"], said["reasoning"]) == ("珠穆", "用户问")
    figures = said["figures"]
    assert (figures["thought"], figures["tokens"], figures["prompt"]) == (2, 40, 9)
    assert figures["ttft"] >= 0


def test_an_error_in_the_stream_is_told_in_its_own_words(page: Page) -> None:
    with pytest.raises(Exception, match="broke off its answer"):
        page.evaluate(STREAM, [event({"content": "a"}), 'data: {"error": {"message": "It broke off its answer."}}\n\n'])


# --- Markdown ---


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("|a|b|\n|-|:-:|\n|1|**2**|", "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td>"
         "<td><strong>2</strong></td></tr></tbody></table></div>"),
        ("| not a table |", "<p>| not a table |</p>"),
        ("> quoted\n\n---", "<blockquote><p>quoted</p></blockquote><hr>"),
        ("*em* 2*3*4 ~~no~~", "<p><em>em</em> 2*3*4 <s>no</s></p>"),
        ("``a ` b`` and ` open", "<p><code>a ` b</code> and ` open</p>"),
        ("```\n~~~\n- x\n```\nend", "<pre><code>~~~\n- x</code></pre><p>end</p>"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("[a](javascript:alert(1)) [b](data:text/html,x)", "<p>[a](javascript:alert(1)) [b](data:text/html,x)</p>"),
    ],
)  # fmt: skip
def test_more_of_markdown_is_laid_out(text: str, html: str, page: Page) -> None:
    assert page.evaluate(RENDER, text) == html


@pytest.mark.parametrize("text", ["[Ray](https://docs.ray.io/a_(b))", "https://docs.ray.io/a_(b)"])
def test_a_link_leads_out_of_the_page_without_telling_where_from(text: str, page: Page) -> None:
    html = page.evaluate(RENDER, text)
    assert 'rel="noopener noreferrer nofollow"' in html
    assert 'target="_blank"' in html


@pytest.mark.parametrize("text", ["**" * 20_000, "`" * 30_000, "[" * 30_000, "*a " * 6_000, "> " * 9_000, "|a" * 9_000])
def test_a_hostile_answer_does_not_stop_the_page(text: str, page: Page) -> None:
    took = page.evaluate(f"""async (text) => {{
      const render = {RENDER};
      const begun = performance.now();
      await render(text);
      return performance.now() - begun;
    }}""", text)
    assert took < 2_000


def test_an_answer_that_grows_keeps_the_blocks_that_are_done(page: Page) -> None:
    same = page.evaluate("""async () => {
      const { render } = await import("/static/js/markdown.js");
      const box = document.createElement("div");
      render(box, "one\\n\\ntw");
      const first = box.firstChild;
      render(box, "one\\n\\ntwo\\n\\nthree");
      const grown = [box.firstChild === first, box.children.length];
      render(box, "one");
      return [...grown, box.firstChild === first, box.children.length];
    }""")
    assert same == [True, 3, True, 1]
