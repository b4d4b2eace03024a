// A chart of one metric over the group's span. A gap in the samples is a gap in the line; colours come from the stylesheet.

import { colour } from "./colour.js";
import { columns, roof, size } from "./points.js";
import { metric } from "./samples.js";

const LEAST = 300; // seconds shown at first, so that the first minutes are not a sliver at the edge

const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(document.documentElement.lang, { month: "short", day: "numeric" });

export class Chart {
  constructor(figure, group) {
    Object.assign(this, { figure, group, metric: metric(figure.dataset.metric), data: [[], []] });
    this.plot = figure.querySelector("[data-plot]");
    this.now = figure.querySelector("[data-now]");
    this.unit = figure.querySelector("[data-of]");
    this.top = Number(figure.dataset.top) || 100;
    this.build();
    new ResizeObserver(() => this.u.setSize(this.size())).observe(this.plot);
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
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { size: 6 }, sync: { key: "charts" } },
      padding: [6, 16, 0, 0],
      scales: { x: { time: true, range: () => this.group.zoom ?? this.extent() }, y: { range: () => [0, this.top] } },
      axes: [
        { ...axis, size: 24, space: 70, values: (u, marks) => marks.map((mark) => this.group.months ? day.format(mark * 1000) : clock.format(mark * 1000)) },
        { ...axis, size: 38, splits: () => [0, this.top / 2, this.top], values: (u, marks) => marks.map(this.label) },
      ],
      series: [{}, { stroke: line, fill: line.replace(/^rgb\((.*)\)$/, "rgba($1, 0.1)"), width: 1.5, points: { show: false } }],
      hooks: { setCursor: [() => this.tell()], setSelect: [(u) => this.select(u)] },
    }, this.data, this.plot);
  }

  label = (mark) => mark.toFixed(Math.abs(mark - Math.round(mark)) < 0.05 || mark >= 100 ? 0 : 1);

  /** What is drawn without a zoom: all there is, at most the span. */
  extent() {
    const last = this.data[0].at(-1) ?? Date.now() / 1000;
    return [last - Math.min(this.group.seconds, Math.max(LEAST, last - (this.data[0][0] ?? last))), last];
  }

  /** What was dragged over becomes the whole width, of every chart of the group. */
  select(u) {
    if (u.select.width < 4) return;
    const ends = [u.select.left, u.select.left + u.select.width].map((place) => u.posToVal(place, "x"));
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.group.show(ends);
  }

  update(samples, step) {
    this.data = columns(samples, this.metric.value, step);
    const top = samples.length ? this.metric.top(samples.at(-1)) : null;
    this.top = top || (this.metric.top({ gpus: [], mem: [], disk: [] }) === null ? roof(this.data[1]) : this.top);
    if (top && this.unit.dataset.of) this.unit.textContent = this.unit.dataset.of.replace("{total}", size(top));
    this.u.setData(this.data);
    this.tell();
  }

  redraw() {
    this.u.setData(this.data);
  }

  /** The number above the chart: the value under the pointer, else the last one. */
  tell() {
    const at = this.u?.cursor.idx ?? this.data[1].length - 1;
    const value = this.data[1][at];
    this.now.textContent = value == null ? "–" : value.toFixed(this.metric.digits);
  }
}
