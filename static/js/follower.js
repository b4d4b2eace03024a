// One job's log: followed over a websocket; after a lost connection it goes on at the byte that was taken last, so that no
// line is missing or doubled.

import { connect } from "./socket.js";
import { Lines } from "./lines.js";
import { piece } from "./piece.js";

const PIECE = 1 << 18; // bytes before a linked line and behind it, and of earlier or later lines at once

/**
 * `on.lines(lines, unfinished)`, `on.skipped`, `on.ended`, `on.lost`, … With `from`, the offset of a linked line, the piece
 * around that is read: `apart` from the log's end until `later` has come there.
 */
export class Follower {
  constructor(job, on, from = null) {
    Object.assign(this, { job, on, heard: from !== null, apart: from !== null, ended: null, first: null, socket: null });
    this.lines = new Lines(Math.max(0, (from ?? 0) - PIECE));
    if (this.apart) this.around(from);
    else this.connect();
  }

  connect() {
    this.apart = false;
    this.socket = connect(() => this.address(), {
      message: ({ data }) => this.receive(data),
      lost: () => this.on.lost(),
      refused: () => this.on.missing(),
    });
  }

  /** A first request is answered with the end of a long log. */
  address() {
    return `/ws/log/${this.job}?live=1${this.heard ? `&after=${this.lines.offset}` : ""}`;
  }

  stop() {
    this.stopped = true;
    this.socket?.stop();
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
    this.deliver(lines);
  }

  deliver(lines) {
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

  /** The lines around a linked one, however far back it is. */
  async around(offset) {
    try {
      while (this.apart && this.lines.offset <= offset + PIECE / 2) await this.later(offset);
    } catch {
      this.on.unread();
    }
  }

  /** The next piece of a log that is read from its middle on; at its end it is followed again. */
  async later(wanted = Infinity) {
    const [begins, bytes] = await piece(this.job, this.lines.offset, this.lines.offset + PIECE);
    if (this.stopped) return;
    if (begins > wanted) this.on.unkept();
    if (begins > this.lines.offset) this.lines.skip(begins);
    if (bytes.length) this.deliver(this.lines.more(bytes));
    else this.connect();
  }

  /** Lines before the first one, which was not the log's: a piece of them. */
  async earlier() {
    const start = Math.max(0, this.first - PIECE);
    const [begins, bytes] = await piece(this.job, start, this.first);
    const found = bytes.length ? new Lines(begins).split(bytes) : [];
    this.first = begins > start ? 0 : found[0]?.offset ?? start; // what nobody keeps any more is not asked for again
    return found;
  }
}
