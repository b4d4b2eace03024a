// What one model answered to one prompt, given once or again: the newest is shown, the one before it beside it if wanted.

import { word } from "./words.js";

export class Versions {
  constructor(into) {
    this.all = [];
    this.shown = -1;
    this.beside = false;
    this.box = document.createElement("div");
    this.box.className = "versions";
    into.append(this.box);
  }

  get answer() {
    return this.all[this.shown];
  }

  add(answer) {
    this.all.push(answer);
    answer.part("older").onclick = () => this.show(this.shown - 1);
    answer.part("newer").onclick = () => this.show(this.shown + 1);
    answer.part("beside").onclick = () => this.compare(!this.beside);
    this.show(this.all.length - 1);
  }

  compare(on) {
    this.beside = on;
    this.show(this.shown);
  }

  show(index) {
    this.shown = Math.max(0, Math.min(index, this.all.length - 1));
    this.box.classList.toggle("is-beside", this.beside && this.shown > 0);
    this.all.forEach((answer, at) => {
      answer.article.hidden = at !== this.shown && !(this.beside && at === this.shown - 1);
      answer.part("pager").hidden = this.all.length < 2 || at !== this.shown;
      answer.part("older").disabled = at === 0;
      answer.part("newer").disabled = at === this.all.length - 1;
      answer.part("beside").hidden = at !== this.shown || at === 0;
      answer.part("beside").setAttribute("aria-pressed", this.beside);
      answer.put("count", word("of", { n: at + 1, all: this.all.length }));
    });
  }

  /** Mark the answers of an earlier start, or of a deployment that is gone (`server` undefined). */
  mark(server) {
    for (const answer of this.all) {
      const gone = server === undefined;
      answer.part("earlier").hidden = !gone && answer.server === server;
      answer.put("earlier", word(gone ? "gone" : "earlier"));
    }
  }
}
