// Lines that came and are not drawn yet. Those of several logs go by time; they wait until the past of all has come.

const CALM = 200; // ms without a new line, after which the past has come
const PATIENCE = 2000; // ms for which a log that says nothing is waited for

export class Fresh {
  constructor(logs = 1) {
    Object.assign(this, { logs, lines: [], heard: new Set(), begun: performance.now(), came: 0, waits: logs > 1 });
  }

  get length() {
    return this.lines.length;
  }

  /** At most `most` are kept, the newest. */
  add(job, lines, most) {
    for (const line of lines) this.lines.push({ job, ...line });
    this.heard.add(job);
    this.came = performance.now();
    if (this.logs > 1 && lines.length) this.sort();
    if (this.lines.length > most) this.lines.splice(0, this.lines.length - most);
  }

  /** A line whose time is not known stays behind the one before it. */
  sort() {
    const last = new Map();
    for (const line of this.lines) {
      line.time ||= last.get(line.job) ?? 0;
      last.set(line.job, line.time);
    }
    this.lines.sort((one, other) => one.time - other.time);
  }

  /** Whether what belongs between these lines may still come. */
  early() {
    const now = performance.now();
    this.waits &&= now - this.begun < PATIENCE && (this.heard.size < this.logs || now - this.came < CALM);
    return this.waits;
  }

  take(count) {
    return this.early() ? [] : this.lines.splice(0, count);
  }
}
