// One job's log: followed over a websocket; after a lost connection it goes on at the byte that was taken last, so that no
// line is missing or doubled.

import { connect } from "./socket.js";
import { Lines } from "./lines.js";

const BEFORE = 1 << 18; // bytes before a linked line, and of earlier lines at once

/** `on.lines(lines, unfinished)`, `on.first(offset)`: nothing before it was taken, `on.skipped`, `on.ended`, `on.lost`, … */
export class Follower {
  constructor(job, on, from = null) {
    Object.assign(this, { job, on, heard: from !== null, ended: null, first: null });
    this.lines = new Lines(Math.max(0, (from ?? 0) - BEFORE));
    this.socket = connect(() => this.address(), {
      message: ({ data }) => this.receive(data),
      lost: () => on.lost(),
      refused: () => on.missing(),
    });
  }

  /** A first request is answered with the end of a long log. */
  address() {
    return `/ws/log/${this.job}?live=1${this.heard ? `&after=${this.lines.offset}` : ""}`;
  }

  stop() {
    this.socket.stop();
  }

  receive(data) {
    this.heard = true;
    if (typeof data === "string") {
      this.told(JSON.parse(data));
      return;
    }
    const lines = this.lines.take(data);
    if (lines === null) {
      this.socket.again(); // a piece is missing or doubled: ask again from the byte that was taken
      return;
    }
    this.first ??= lines[0]?.offset ?? null;
    this.on.lines(lines, this.lines.unfinished);
  }

  told({ skipped, times, ended }) {
    for (const [offset, time] of times ?? []) this.lines.mark(offset, time);
    if (skipped) {
      this.lines.skip(skipped[1]);
      if (this.first !== null) this.on.skipped(skipped);
    }
    if (ended) {
      this.socket.stop();
      this.ended = ended;
      this.on.ended(ended);
    }
  }

  /** Lines before the first one, which was not the log's: a piece of them. */
  async earlier() {
    const start = Math.max(0, this.first - BEFORE);
    const response = await fetch(`/jobs/${this.job}/log?start=${start}&end=${this.first}`);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    const begins = Number(response.headers.get("X-Log-Start") ?? start);
    const lines = new Lines(begins);
    const found = bytes.length ? lines.split(bytes) : [];
    this.first = begins > start ? 0 : found[0]?.offset ?? start; // what nobody keeps any more is not asked for again
    return found;
  }
}
