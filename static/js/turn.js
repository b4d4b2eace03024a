// One prompt and the answers to it, of each model that was asked.

import { copyOf } from "./answer.js";
import { drawPictures } from "./pictures.js";
import { Versions } from "./versions.js";
import { time } from "./words.js";

export class Turn {
  /** `prompt`: {text, images}; `edit` is called with this turn. */
  constructor(number, prompt, into, edit, at = Date.now()) {
    Object.assign(this, { number, prompt, by: new Map() });
    this.section = copyOf("prompt", into);
    const part = (name) => this.section.querySelector(`[data-${name}]`);
    part("text").textContent = prompt.text;
    part("about").textContent = time(at);
    part("edit").onclick = () => edit(this);
    this.answers = part("answers");
    drawPictures(part("pictures"), prompt.images);
  }

  versions(model) {
    if (!this.by.has(model)) this.by.set(model, new Versions(this.answers));
    return this.by.get(model);
  }

  /** What was said here, for the prompts after it; null where the model gave no answer. */
  said(model) {
    const text = this.by.get(model)?.answer?.now.text;
    return text ? { prompt: this.prompt, answer: text } : null;
  }

  mark(servers) {
    for (const [model, versions] of this.by) versions.mark(servers.get(model));
  }
}
