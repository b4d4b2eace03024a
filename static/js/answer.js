// One answer in the playground: its text as it grows, its state, its figures, and why it failed.

import { render } from "./markdown.js";
import { nothing } from "./stream.js";
import { copyText, word } from "./words.js";

export function copyOf(template, into) {
  const copy = document.getElementById(template).content.firstElementChild.cloneNode(true);
  into.append(copy);
  return copy;
}

function scrolledToEnd() {
  return innerHeight + scrollY > document.body.scrollHeight - 90;
}

export const toEnd = () => scrollTo({ top: document.body.scrollHeight });
const milliseconds = (time) => (time == null ? "–" : time < 9999.5 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`);
const seconds = (time) => (time == null ? "–" : `${(time / 1000).toFixed(1)} s`);

export class Answer {
  /** `server`: the job of the model server that answers; `on`: what the buttons do. */
  constructor(model, server, into) {
    Object.assign(this, { model, server, now: nothing(), frame: 0, state: "running", mode: "chat", why: "" });
    this.article = copyOf("answer", into);
    this.put("model", model);
    this.draw("running");
  }

  part(name) {
    return this.article.querySelector(`[data-${name}]`);
  }

  put(name, text) {
    this.part(name).textContent = text;
  }

  as(mode, note = "") {
    this.mode = mode;
    this.put("mode", word(mode));
    this.put("note", note);
    this.part("note").hidden = !note;
  }

  grow({ text, reasoning, figures }) {
    this.now = { text, reasoning, figures };
    this.frame ||= requestAnimationFrame(() => this.draw("running"));
  }

  end(state, why = "") {
    cancelAnimationFrame(this.frame);
    Object.assign(this, { state, why });
    this.draw(state);
    this.article.classList.toggle("is-without", !this.now.figures.tokens);
    this.part("error").hidden = !why;
    this.put("why", why);
    for (const name of ["again", "code", "copy-answer"]) this.part(name).hidden = false;
    this.part("code").hidden = !this.request;
    this.part("copy-answer").hidden = !this.now.text;
    this.part("copy-answer").onclick = () => copyText(this.now.text, this.part("copy-answer"));
    this.part("stop-one").hidden = true;
    for (const code of this.article.querySelectorAll(".prose pre")) copyOf("copy-code", code).parentElement.dataset.copyFrom = "";
  }

  draw(state) {
    this.frame = 0;
    const stay = state === "running" && scrolledToEnd();
    const text = this.part("text");
    this.caret?.remove();
    render(text, this.now.text);
    if (state === "running") (text.lastElementChild ?? text).append((this.caret ??= caret()));
    text.setAttribute("aria-busy", state === "running");
    for (const chip of this.article.querySelectorAll("[data-state]")) chip.hidden = chip.dataset.state !== state;
    this.think();
    this.figures(this.now.figures);
    if (stay) toEnd();
  }

  think() {
    const { thought, thinking } = this.now.figures;
    this.part("thinking").hidden = !this.now.reasoning;
    this.put("reasoning", this.now.reasoning.trim());
    this.put("thought", word("thought", { tokens: thought, seconds: (thinking / 1000).toFixed(1) }));
  }

  figures({ ttft, took, speed, tokens, prompt, finish }) {
    this.put("ttft", milliseconds(ttft));
    this.put("speed", speed == null ? "–" : speed.toFixed(1));
    this.put("tokens", tokens);
    this.put("took", seconds(took));
    this.put("prompt", prompt ?? "");
    this.part("prompt-part").hidden = prompt == null;
    this.part("cut").hidden = finish !== "length";
  }
}

const caret = () => Object.assign(document.createElement("span"), { className: "caret" });
