// From bytes of a log to lines of text. Pieces arrive cut anywhere: in a character, in a line, in a colour code.

const NOTHING = [];

export class Lines {
  /** `offset` is the next byte expected: the place to resume from. */
  constructor() {
    this.offset = 0;
    this.reset();
  }

  reset() {
    this.decoder = new TextDecoder("utf-8");
    this.open = "";
  }

  /**
   * Take a frame: 8 bytes of start offset, big endian, then the bytes. Returns the lines it completed, or null when it
   * does not begin where the last one ended; then nothing is taken and the caller resumes at `offset`.
   */
  take(frame) {
    const start = Number(new DataView(frame).getBigUint64(0));
    const bytes = new Uint8Array(frame, 8);
    if (start + bytes.length <= this.offset) return NOTHING; // drawn already
    if (start !== this.offset) return null;
    this.offset += bytes.length;
    return this.split(this.decoder.decode(bytes, { stream: true }));
  }

  split(text) {
    const lines = (this.open + text).split("\n");
    this.open = lines.pop();
    return lines.map(settle);
  }

  /** The unfinished last line as a terminal would show it now. */
  get unfinished() {
    return settle(this.open);
  }

  /** Bytes up to `offset` are not there any more: go on behind them. */
  skip(offset) {
    this.offset = offset;
    this.reset();
  }
}

/** What is left of a line in which a carriage return began the line anew (progress bars do this). */
function settle(line) {
  const text = line.endsWith("\r") ? line.slice(0, -1) : line;
  const again = text.lastIndexOf("\r");
  return again < 0 ? text : text.slice(again + 1);
}
