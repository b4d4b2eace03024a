// Draws lines of one or several logs in one box. Lines lie in blocks, and the browser lays out only the blocks that are in
// sight (content-visibility), so that a hundred thousand lines stay smooth; beyond that the oldest are taken out again.

import { level, paint, plain } from "./painter.js";

const MOST = 100000;
const BLOCK = 200;
const A_SIFT = 25; // blocks in one frame
const A_FRAME = 3000; // lines drawn in one, so that the page answers meanwhile

const clock = new Intl.DateTimeFormat(document.documentElement.lang || undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

export class Pane {
  /** `name(job)`: what stands before each line, where several logs share the box; `mark`: a linked line, its id. */
  constructor(box, { name = null, mark = "", onErrors = () => {} } = {}) {
    Object.assign(this, { box, name, mark, onErrors, list: box.querySelector("[data-list]"), fresh: [], open: new Map() });
    Object.assign(this, { following: true, wanted: "", errors: 0, count: 0, frame: 0, filtering: 0, block: null });
    this.tail = document.createElement("ol");
    this.list.replaceChildren(this.tail);
    const leave = () => this.follow(false);
    this.listeners = new AbortController();
    const on = (event, act) => box.addEventListener(event, act, { passive: true, signal: this.listeners.signal });
    on("wheel", ({ deltaY }) => deltaY < 0 && leave());
    on("scroll", () => this.atEnd() && this.follow(true));
    on("keydown", ({ key }) => ["ArrowUp", "PageUp", "Home"].includes(key) && leave());
    on("touchmove", () => this.follow(this.atEnd()));
  }

  stop() {
    cancelAnimationFrame(this.frame);
    cancelAnimationFrame(this.filtering);
    this.listeners.abort();
    this.list.replaceChildren();
  }

  atEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 8;
  }

  follow(on) {
    if (on !== this.following) this.onFollow?.(on);
    this.following = on;
    if (on) this.box.scrollTop = this.box.scrollHeight;
  }

  /** Lines of a job, each with offset, time and text, and its unfinished last one. */
  add(job, lines, unfinished = "") {
    for (const line of lines) this.fresh.push({ job, ...line });
    this.sort(lines.length);
    if (this.fresh.length > MOST) this.fresh.splice(0, this.fresh.length - MOST);
    if (unfinished) this.open.set(job, unfinished);
    else this.open.delete(job);
    this.ask();
  }

  ask() {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  /** What waits to be drawn goes by time; a line whose time is not known stays behind the one before it. */
  sort(added) {
    if (!this.name || !added) return;
    const last = new Map();
    for (const line of this.fresh) {
      line.time ||= last.get(line.job) ?? 0;
      last.set(line.job, line.time);
    }
    this.fresh.sort((one, other) => one.time - other.time);
  }

  draw() {
    this.frame = 0;
    const drawn = this.fresh.splice(0, A_FRAME);
    for (let from = 0; from < drawn.length;) {
      if (!this.block || this.block.childElementCount >= BLOCK) this.begin();
      const piece = drawn.slice(from, from + BLOCK - this.block.childElementCount);
      this.block.append(this.rows(piece));
      from += piece.length;
    }
    this.count += drawn.length;
    this.tail.replaceChildren(this.rows([...this.open].map(([job, text]) => ({ job, text, offset: null, time: 0 }))));
    if (this.fresh.length) this.ask();
    this.trim();
    if (this.marked) this.reveal(this.marked);
    else if (this.following) this.box.scrollTop = this.box.scrollHeight;
  }

  begin() {
    this.block = document.createElement("ol");
    this.tail.before(this.block);
  }

  /** The oldest go, block by block; later where somebody reads, so that nothing moves under their eyes. */
  trim() {
    const most = this.following ? MOST : 2 * MOST;
    while (this.count > most) {
      this.count -= this.list.firstElementChild.childElementCount;
      this.list.firstElementChild.remove();
    }
  }

  /** Lines that come before all others; the last of them come into sight. */
  prepend(job, lines) {
    const block = document.createElement("ol");
    block.append(this.rows(lines.map((line) => ({ job, ...line }))));
    this.list.prepend(block);
    this.count += lines.length;
    this.follow(false);
    block.lastElementChild?.scrollIntoView({ block: "center" });
  }

  rows(lines) {
    const made = document.createElement("template");
    made.innerHTML = lines.map((line) => this.row(line)).join("");
    const rows = [...made.content.children];
    rows.forEach((row, at) => {
      row.hidden = !plain(lines[at].text).toLowerCase().includes(this.wanted);
      if (row.id && row.id === this.mark) this.marked = row;
    });
    return made.content;
  }

  row({ job, offset, time, text }) {
    const kind = level(plain(text));
    if (kind === "is-error") this.error();
    const of = this.name ? `<i class="of n${this.name(job).number}">${paint(this.name(job).text)}</i>` : "";
    if (offset === null) return `<li class="${kind}">${of}${paint(text)}</li>`;
    const id = `log-${job}-${offset}`;
    const when = `<a class="at" href="#${id}" tabindex="-1">${time ? clock.format(time) : "·"}</a>`;
    return `<li class="${kind}" id="${id}">${when}${of}${paint(text)}</li>`;
  }

  error() {
    this.errors += 1;
    this.asked ||= requestAnimationFrame(() => {
      this.asked = 0;
      this.onErrors(this.errors);
    });
  }

  /** Show only lines with this text: the newest first, some blocks a frame, so that typing goes on. */
  filter(text) {
    this.wanted = text.toLowerCase();
    cancelAnimationFrame(this.filtering);
    this.sift([...this.list.children]);
  }

  sift(blocks) {
    for (const block of blocks.splice(-A_SIFT)) {
      for (const row of block.children) {
        const hide = !row.textContent.toLowerCase().includes(this.wanted);
        if (row.hidden !== hide) row.hidden = hide;
      }
    }
    if (this.following) this.follow(true);
    this.filtering = blocks.length ? requestAnimationFrame(() => this.sift(blocks)) : 0;
  }

  firstError() {
    const row = this.list.querySelector("li.is-error:not([hidden])");
    if (row) this.reveal(row);
    return row !== null;
  }

  reveal(row) {
    this.marked = null;
    this.follow(false);
    this.list.querySelector("li.is-marked")?.classList.remove("is-marked");
    row.classList.add("is-marked");
    row.scrollIntoView({ block: "center" });
  }
}
