// Draws lines of one or several logs in one box. Lines lie in blocks, and the browser lays out only the blocks that are in
// sight (content-visibility), so that a hundred thousand lines stay smooth; beyond that the oldest are taken out again.

import { Fresh } from "./fresh.js";
import { rows, sift } from "./rows.js";
import { Scroll } from "./scroll.js";

const MOST = 100000;
const BLOCK = 200;
const A_SIFT = 25; // blocks in one frame
const A_FRAME = 3000; // lines drawn in one, so that the page answers meanwhile

export class Pane {
  /** `name(job)`: what stands before each line, where several `logs` share the box; `mark`: the id of a linked line. */
  constructor(box, { name = null, logs = 1, mark = "" } = {}) {
    Object.assign(this, { box, name, mark, list: box.querySelector("[data-list]"), fresh: new Fresh(logs), open: new Map() });
    Object.assign(this, { wanted: "", count: 0, frame: 0, filtering: 0, block: null, scroll: new Scroll(box) });
    this.tail = document.createElement("ol");
    this.list.replaceChildren(this.tail);
  }

  stop() {
    cancelAnimationFrame(this.frame);
    cancelAnimationFrame(this.filtering);
    this.scroll.stop();
    this.list.replaceChildren();
  }

  /** Lines of a job, each with offset, time and text, and its unfinished last one. */
  add(job, lines, unfinished = "") {
    this.fresh.add(job, lines, MOST);
    if (unfinished) this.open.set(job, unfinished);
    else this.open.delete(job);
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    const drawn = this.fresh.take(A_FRAME);
    for (let from = 0; from < drawn.length;) {
      if (!this.block || this.block.childElementCount >= BLOCK) this.tail.before((this.block = document.createElement("ol")));
      const piece = drawn.slice(from, from + BLOCK - this.block.childElementCount);
      this.block.append(rows(piece, this));
      from += piece.length;
    }
    this.count += drawn.length;
    this.tail.replaceChildren(rows([...this.open].map(([job, text]) => ({ job, text, offset: null, time: 0 })), this));
    this.frame = this.fresh.length ? requestAnimationFrame(() => this.draw()) : 0;
    this.trim();
    const marked = this.mark && document.getElementById(this.mark);
    if (marked) this.reveal(marked);
    else this.scroll.settle();
  }

  /** The oldest go, block by block; later where somebody reads, so that nothing moves under their eyes. */
  trim() {
    const most = this.scroll.following ? MOST : 2 * MOST;
    for (; this.count > most; this.list.firstElementChild.remove()) this.count -= this.list.firstElementChild.childElementCount;
  }

  /** Lines that come before all others; the last of them come into sight. */
  prepend(job, lines) {
    const block = document.createElement("ol");
    block.append(rows(lines.map((line) => ({ job, ...line })), this));
    this.list.prepend(block);
    this.count += lines.length;
    this.scroll.follow(false);
    block.lastElementChild?.scrollIntoView({ block: "center" });
  }

  /** Show only lines with this text: the newest first, some blocks a frame, so that typing goes on. */
  filter(text, blocks = [...this.list.children]) {
    this.wanted = text.toLowerCase();
    cancelAnimationFrame(this.filtering);
    for (const block of blocks.splice(-A_SIFT)) sift(block.children, this.wanted);
    this.scroll.settle();
    this.filtering = blocks.length ? requestAnimationFrame(() => this.filter(text, blocks)) : 0;
  }

  reveal(row) {
    this.mark = "";
    this.scroll.follow(false);
    this.list.querySelector("li.is-marked")?.classList.remove("is-marked");
    row.classList.add("is-marked");
    row.scrollIntoView({ block: "center" });
  }
}
