// The samples behind the charts of one source: the past by request, then what comes.

import { listen, nameOf, newest, past } from "./samples.js";

export const SECONDS = { hour: 3600, day: 86400, month: 30 * 86400 };
const AGAIN = { hour: 0, day: 60, month: 900 }; // seconds after which a longer span is asked for again

/** The samples of one source in the span that its group shows. */
export class Track {
  constructor(source, group) {
    Object.assign(this, { source, group, charts: [], samples: [], step: 1, asked: 0 });
    listen([nameOf(source)], (changed, skipped) => this.hear(changed, skipped));
    this.load();
  }

  async load() {
    const span = this.group.span;
    this.asked = Date.now() / 1000;
    try {
      const { step, samples } = await past(this.source, span);
      if (span !== this.group.span) return;
      const last = samples.at(-1)?.t ?? 0;
      const fresh = span === "hour" ? this.samples.filter((sample) => sample.t > last) : [];
      Object.assign(this, { step, samples: [...samples, ...fresh] });
      this.draw();
    } catch {
      // the server is away: the socket comes back with it, and asks again
    }
  }

  hear(changed, skipped) {
    if (!this.charts.some((chart) => chart.figure.isConnected)) return false;
    if (this.group.span !== "hour") {
      if (Date.now() / 1000 - this.asked > AGAIN[this.group.span]) this.load();
      return true;
    }
    const name = nameOf(this.source);
    const sample = newest.get(name);
    if (changed.has(name) && sample.t > (this.samples.at(-1)?.t ?? 0)) {
      this.samples.push(sample);
      while (this.samples[0].t < sample.t - SECONDS.hour) this.samples.shift();
      this.draw();
    }
    if (skipped) this.load();
    return true;
  }

  draw() {
    if (!this.group.paused) for (const chart of this.charts) chart.update(this.samples, this.step);
  }
}
