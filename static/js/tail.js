// The log viewer. Draws a job's log and follows it; after a lost connection it resumes at the byte it has drawn, so that
// no line is missing or doubled.

import { connect } from "./socket.js";
import { Lines } from "./lines.js";
import { LogView } from "./logview.js";

class Tail {
  constructor(root) {
    this.root = root;
    this.text = root.dataset;
    this.select = () => root.querySelector("[data-source]");
    this.view = new LogView(root);
    root.addEventListener("change", (event) => {
      if (event.target.matches("[data-source]")) this.choose(event.target.value);
    });
    // The list of sources is fetched again with the page: keep what the reader chose, else go with the newest.
    document.addEventListener("htmx:oobAfterSwap", () => this.settle());
    this.settle();
  }

  choose(job) {
    this.chosen = job;
    this.select().value = job;
    this.show(job);
  }

  settle() {
    const select = this.select();
    if (!select) return;
    const offered = [...select.options].map((option) => option.value);
    if (offered.includes(this.chosen)) select.value = this.chosen;
    if (select.value) this.show(select.value);
    this.conclude(); // that it was asked to end may only now be known
  }

  show(job) {
    if (job === this.job) return;
    this.socket?.stop();
    this.job = job;
    this.lines = new Lines();
    this.ended = null;
    this.heard = false; // a first request is answered with the end of a long log
    this.view.clear(`/jobs/${job}/log`);
    this.view.say(this.text.waiting);
    this.socket = connect(() => `/ws/log/${job}${this.heard ? `?after=${this.lines.offset}` : ""}`, {
      message: (event) => this.receive(event.data),
      lost: () => this.view.say(this.text.lost),
      refused: () => this.view.say(this.text.missing),
    });
  }

  receive(data) {
    this.heard = true;
    if (typeof data === "string") {
      this.told(JSON.parse(data));
      return;
    }
    const lines = this.lines.take(data);
    if (lines === null) {
      this.socket.again(); // a piece is missing or doubled: ask again from the byte that is drawn
    } else {
      this.view.add(lines, this.lines.unfinished);
      this.view.say("");
    }
  }

  told(news) {
    if (news.skipped) {
      this.lines.skip(news.skipped[1]);
      this.view.add([this.text.skipped], "");
    }
    if (news.ended) {
      this.socket.stop();
      this.ended = news.ended;
      this.conclude();
    }
  }

  conclude() {
    if (!this.ended) return;
    const { state, status } = this.ended;
    const asked = this.select().selectedOptions[0]?.dataset.asAsked !== undefined;
    const ended = state === "lost" ? this.text.gone : this.text.ended.replace("{status}", status);
    this.view.say(asked ? this.text.asAsked : ended);
  }
}

const viewers = [...document.querySelectorAll("[data-tail]")].map((root) => new Tail(root));

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-log]");
  if (!button || !viewers.length) return;
  viewers[0].choose(button.dataset.log);
  viewers[0].root.scrollIntoView({ behavior: "smooth", block: "nearest" });
});
