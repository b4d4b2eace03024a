// The charts of a page, in groups that share a span, a zoom and a pause. They come anew when more is known of the node, and
// change their colours with the theme.

import { Chart } from "./chart.js";
import { SECONDS, Track } from "./track.js";

const groups = [];

class Group {
  constructor(root) {
    Object.assign(this, { root, span: "hour", paused: false, zoom: null, charts: [], tracks: new Map() });
    this.part = (name) => root.querySelector(`[data-${name}]`);
    root.addEventListener("change", ({ target }) => target.name === "span" && this.look(target.value));
    root.addEventListener("dblclick", () => this.show(null));
    this.part("pause")?.addEventListener("click", () => this.pause(!this.paused));
    this.part("unzoom")?.addEventListener("click", () => this.show(null));
    this.adopt();
  }

  get seconds() {
    return SECONDS[this.span];
  }

  get months() {
    return this.span === "month";
  }

  adopt() {
    this.charts = this.charts.filter((chart) => chart.figure.isConnected);
    for (const figure of this.root.querySelectorAll("[data-chart]:not([data-started])")) {
      figure.dataset.started = "";
      const { source } = figure.dataset;
      if (!this.tracks.has(source)) this.tracks.set(source, new Track(source, this));
      const chart = new Chart(figure, this);
      this.charts.push(chart);
      this.tracks.get(source).charts.push(chart);
      if (this.tracks.get(source).samples.length) this.tracks.get(source).draw();
    }
  }

  look(span) {
    Object.assign(this, { span, zoom: null });
    this.pause(false);
    for (const track of this.tracks.values()) {
      track.samples = [];
      track.load();
    }
    this.show(null);
  }

  pause(on) {
    this.paused = on;
    this.part("pause")?.setAttribute("aria-pressed", on);
    if (!on) for (const track of this.tracks.values()) track.draw();
  }

  /** Show from one time to another (seconds); null: all of the span. */
  show(ends) {
    this.zoom = ends;
    this.part("unzoom")?.toggleAttribute("hidden", ends === null);
    for (const chart of this.charts) chart.redraw();
  }
}

// For whoever looks at a page by hand, and for the tests.
Object.defineProperty(window, "charts", { get: () => groups.flatMap((group) => group.charts) });

function start() {
  for (let at = groups.length - 1; at >= 0; at -= 1) if (!groups[at].root.isConnected) groups.splice(at, 1);
  for (const root of document.querySelectorAll("[data-charts]")) {
    const known = groups.find((group) => group.root === root);
    if (known) known.adopt();
    else groups.push(new Group(root));
  }
}

start();
const recolour = () => groups.forEach((group) => group.charts.forEach((chart) => chart.build()));
document.addEventListener("htmx:oobAfterSwap", start);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
document.addEventListener("deck:theme", recolour);
