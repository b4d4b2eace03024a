// A chart of the last hour. A gap in the samples is a gap in the line; colours come from the stylesheet.

import { colour } from "./colour.js";
import { follow, metric } from "./samples.js";

const HOUR = 3600;
const LEAST = 300; // seconds shown at first, so that the first minutes are not a sliver at the edge
const GAP = 5;

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

function columns(samples, value) {
  const [times, values] = [[], []];
  for (const sample of samples) {
    if (times.length && sample.t - times.at(-1) > GAP) {
      times.push(times.at(-1) + 1);
      values.push(null);
    }
    times.push(sample.t);
    values.push(value(sample));
  }
  return [times, values];
}

/** GiB as the server writes them (the filter `gib`). */
const size = (gib) => gib.toFixed(gib >= 99.95 ? 0 : 1);

export class Chart {
  constructor(figure) {
    this.figure = figure;
    this.metric = metric(figure.dataset.metric);
    this.plot = figure.querySelector("[data-plot]");
    this.now = figure.querySelector("[data-now]");
    this.unit = figure.querySelector("[data-of]");
    this.top = Number(figure.dataset.top) || 100;
    this.data = [[], []];
    this.build();
    new ResizeObserver(() => this.u.setSize(this.size())).observe(this.plot);
    follow(figure.dataset.node, (samples) => this.update(samples));
  }

  size() {
    return { width: Math.max(120, this.plot.clientWidth), height: 132 };
  }

  build() {
    this.u?.destroy();
    const [line, ink, grid] = [colour(this.figure.dataset.colour), colour("--ink-3"), colour("--line")];
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: ink, font, ticks: { show: false }, grid: { stroke: grid, width: 1 } };
    this.u = new window.uPlot({
      ...this.size(),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      padding: [6, 16, 0, 0],
      scales: { x: { time: true, range: () => this.span() }, y: { range: () => [0, this.top] } },
      axes: [
        { ...axis, size: 24, space: 70, values: (u, marks) => marks.map(clock) },
        { ...axis, size: 38, splits: () => [0, this.top / 2, this.top], values: (u, marks) => marks.map(this.label) },
      ],
      series: [{}, { stroke: line, fill: line.replace(/^rgb\((.*)\)$/, "rgba($1, 0.1)"), width: 1.5, points: { show: false } }],
      hooks: { setCursor: [() => this.tell()] },
    }, this.data, this.plot);
  }

  label = (mark) => mark.toFixed(Math.abs(mark - Math.round(mark)) < 0.05 || mark >= 100 ? 0 : 1);

  span() {
    const last = this.data[0].at(-1) ?? Date.now() / 1000;
    const shown = Math.min(HOUR, Math.max(LEAST, last - (this.data[0][0] ?? last)));
    return [last - shown, last];
  }

  update(samples) {
    if (!this.figure.isConnected) return false;
    const top = this.metric.top(samples.at(-1));
    this.top = top || this.top;
    if (top && this.unit.dataset.of) this.unit.textContent = this.unit.dataset.of.replace("{total}", size(top));
    this.data = columns(samples, this.metric.value);
    this.u.setData(this.data);
    this.tell();
    return true;
  }

  /** The number above the chart: the value under the pointer, else the last one. */
  tell() {
    const at = this.u?.cursor.idx ?? this.data[1].length - 1;
    const value = this.data[1][at];
    this.now.textContent = value == null ? "–" : value.toFixed(this.metric.digits);
  }
}
