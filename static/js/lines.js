// From bytes of a log to lines of text. Pieces arrive cut anywhere: in a character, in a line, in a colour code.

const NOTHING = [];
const HEAD = 16;
const NEWLINE = 10;
const RETURN = 13;
const LONGEST = 1 << 18; // bytes; a line that goes on and on is broken

export class Lines {
  /** `offset` is the next byte expected: the place to resume from. `from`: begin there, perhaps within a line. */
  constructor(from = 0) {
    this.decoder = new TextDecoder("utf-8");
    this.marks = [];
    this.skip(from);
  }

  /**
   * Take a frame: 8 bytes of start offset and 8 of when it came (ms, 0: not known), big endian, then the bytes. Returns
   * the lines it completed, each with `offset` of its first byte, `time` and `text`; or null when it does not begin where
   * the last one ended; then nothing is taken and the caller resumes at `offset`.
   */
  take(frame) {
    const head = new DataView(frame);
    const start = Number(head.getBigUint64(0));
    const bytes = new Uint8Array(frame, HEAD);
    if (start + bytes.length <= this.offset) return NOTHING; // drawn already
    if (start !== this.offset) return null;
    const time = Number(head.getBigUint64(8));
    if (time) this.mark(start, time);
    return this.more(bytes);
  }

  /** The lines that the next bytes complete. */
  more(bytes) {
    this.offset += bytes.length;
    return this.split(bytes);
  }

  mark(offset, time) {
    if (this.marks.at(-1)?.[1] !== time) this.marks.push([offset, time]);
  }

  split(bytes) {
    const whole = this.rest.length ? joined(this.rest, bytes) : bytes;
    const lines = [];
    let begun = 0;
    for (let end = whole.indexOf(NEWLINE, this.rest.length); end >= 0; end = whole.indexOf(NEWLINE, begun)) {
      this.line(lines, whole.subarray(begun, end), end + 1 - begun);
      begun = end + 1;
    }
    this.rest = whole.slice(begun);
    if (this.rest.length > LONGEST) this.shorten(lines);
    return lines;
  }

  line(lines, bytes, size) {
    const [offset, time] = [this.begun, this.timeAt(this.begun)];
    this.begun += size;
    if (this.partial) this.partial = false;
    else lines.push({ offset, time, text: settle(this.decoder.decode(bytes)) });
  }

  shorten(lines) {
    const again = this.rest.lastIndexOf(RETURN);
    const cut = again > 0 ? again : this.rest.length;
    if (again > 0) this.begun += cut;
    else this.line(lines, this.rest, cut);
    this.rest = this.rest.slice(cut);
  }

  timeAt(offset) {
    while (this.marks.length > 1 && this.marks[1][0] <= offset) this.marks.shift();
    return this.marks[0]?.[0] <= offset ? this.marks[0][1] : 0;
  }

  /** The unfinished last line as a terminal would show it now. */
  get unfinished() {
    return this.partial ? "" : settle(this.decoder.decode(this.rest));
  }

  /** Bytes up to `offset` are not there: go on after the line that is cut by it. */
  skip(offset) {
    this.offset = this.begun = offset;
    this.rest = new Uint8Array(0);
    this.partial = offset > 0;
  }
}

function joined(one, other) {
  const whole = new Uint8Array(one.length + other.length);
  whole.set(one);
  whole.set(other, one.length);
  return whole;
}

/** What is left of a line in which a carriage return began the line anew (progress bars do this). */
function settle(line) {
  const text = line.endsWith("\r") ? line.slice(0, -1) : line;
  return text.slice(text.lastIndexOf("\r") + 1);
}
