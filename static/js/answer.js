// One answer in the playground: its text as it grows, its state, its figures, and why it failed.

import { render } from "./markdown.js";

export const NOTHING_YET = { text: "", figures: { ttft: null, speed: null, tokens: 0, finish: null } };

export function copyOf(template, into) {
  const turn = document.getElementById(template).content.firstElementChild.cloneNode(true);
  into.append(turn);
  return turn;
}

function scrolledToEnd() {
  return innerHeight + scrollY > document.body.scrollHeight - 90;
}

export class Answer {
  constructor(model, into) {
    this.turn = copyOf("turn-answer", into);
    this.now = NOTHING_YET;
    this.frame = 0;
    this.put("model", model);
    this.draw("running");
    scrollTo({ top: document.body.scrollHeight });
  }

  part(name) {
    return this.turn.querySelector(`[data-${name}]`);
  }

  put(name, text) {
    this.part(name).textContent = text;
  }

  grow(text, figures) {
    this.now = { text, figures };
    this.frame ||= requestAnimationFrame(() => this.draw("running"));
  }

  end(state, why = "") {
    cancelAnimationFrame(this.frame);
    this.draw(state);
    this.part("error").hidden = !why;
    this.put("why", why);
  }

  draw(state) {
    this.frame = 0;
    const stay = scrolledToEnd();
    const text = this.part("text");
    render(text, this.now.text);
    if (state === "running") (text.lastElementChild ?? text).append(caret());
    for (const chip of this.turn.querySelectorAll("[data-state]")) chip.hidden = chip.dataset.state !== state;
    this.figures(this.now.figures);
    if (stay) scrollTo({ top: document.body.scrollHeight });
  }

  figures({ ttft, speed, tokens, finish }) {
    this.put("ttft", ttft == null ? "–" : `${Math.round(ttft)} ms`);
    this.put("speed", speed == null ? "–" : speed.toFixed(1));
    this.put("tokens", tokens);
    this.part("cut").hidden = finish !== "length";
  }
}

function caret() {
  return Object.assign(document.createElement("span"), { className: "caret" });
}
