// The chart of tokens a day: prompt and completion on top of each other. Colours come from the stylesheet.

import { colour } from "./colour.js";

const DAY = 86400;
const language = document.documentElement.lang;
const day = new Intl.DateTimeFormat(language, { timeZone: "UTC", month: "short", day: "numeric" });
const short = new Intl.NumberFormat(language, { notation: "compact", maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en");
let chart = null;

/** Under the pointer, else of all days: how many of each. */
function tell(figure, series, at) {
  const sum = (values) => values.reduce((all, one) => all + one, 0);
  const put = (name, text) => (figure.querySelector(`[data-${name}]`).textContent = text);
  for (const name of ["prompt", "completion"]) {
    put(`of-${name}`, whole.format(at == null ? sum(series[name]) : series[name][at]));
  }
  put("day", at == null ? "" : day.format(new Date(`${series.days[at]}T00:00Z`)));
}

/** Every so many days have their date below them, counted from the last, which always has. */
const marked = (days, step) => days.filter((one, at) => (days.length - 1 - at) % step === 0);

function options(figure, series, size) {
  const [ink, grid, surface] = [colour("--ink-3"), colour("--line"), colour("--surface")];
  const axis = { stroke: ink, font: `11px ${getComputedStyle(document.body).fontFamily}`, ticks: { show: false } };
  // The gap between the parts is a stroke, which would be all there is of a bar too small to be seen.
  const seen = (u, value) => u.valToPos(0, "y") - u.valToPos(value ?? 0, "y") > 2;
  const each = (values) => ({ unit: 3, values: (u, at) => u.data[at].map((value) => values(u, value)) });
  const bar = (name) => {
    const [fill, stroke] = [each(() => colour(name)), each((u, value) => (seen(u, value) ? surface : null))];
    const paths = window.uPlot.paths.bars({ size: [0.7, 40], disp: { fill, stroke } });
    return { fill: colour(name), stroke: surface, width: 1, paths, points: { show: false } };
  };
  return {
    ...size,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
    padding: [8, 12, 0, 0],
    scales: {
      x: { time: false, range: (u, from, to) => [from - DAY / 2, to + DAY / 2] },
      y: { range: (u, from, to) => [0, Math.max(10, to * 1.05)] },
    },
    axes: [
      { ...axis, size: 24, space: 60, incrs: [1, 2, 5, 7, 14, 30, 60].map((days) => days * DAY), grid: { show: false },
        splits: (u, at, from, to, step) => marked(u.data[0], step / DAY),
        values: (u, marks) => marks.map((mark) => day.format(new Date(mark * 1000))) },
      { ...axis, size: 48, grid: { stroke: grid, width: 1 }, values: (u, marks) => marks.map((mark) => short.format(mark)) },
    ],
    series: [{}, bar("--d2"), bar("--d1")], // the sum behind, the prompts' part before it
    hooks: { setCursor: [(u) => tell(figure, series, u.cursor.idx)] },
  };
}

function draw() {
  const figure = document.querySelector("[data-usage-chart]");
  const place = figure?.querySelector("[data-plot]");
  chart?.destroy();
  chart = null;
  if (!place) return;
  const series = JSON.parse(document.getElementById("usage-series").textContent);
  const times = series.days.map((one) => Date.parse(`${one}T00:00Z`) / 1000);
  const drawn = (values) => values.map((value) => value || null); // no bar at all where there is nothing
  const sums = drawn(series.prompt.map((prompt, at) => prompt + series.completion[at]));
  const size = () => ({ width: Math.max(120, place.clientWidth), height: 190 });
  const made = new window.uPlot(options(figure, series, size()), [times, sums, drawn(series.prompt)], place);
  chart = made;
  new ResizeObserver(() => made === chart && made.setSize(size())).observe(place);
  tell(figure, series, null);
}

draw();
document.addEventListener("htmx:afterSettle", draw);
document.addEventListener("deck:theme", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
