// One node of the fleet as a strip: a cell a GPU, as high as its memory is used and as dark as it is busy.

import { GPU, gpuOf, newest } from "./samples.js";
import { holdersOf, othersOf, shown } from "./holders.js";
import { totals, View } from "./hosts.js";
import { word } from "./words.js";

const GIB = 2 ** 30;
const CELL = 16;
const SVG = "http://www.w3.org/2000/svg";
const fixed = (value, digits, unit = "") => (value == null ? "–" : `${value.toFixed(digits)}${unit}`);

export class StripView extends View {
  constructor(fleet, node) {
    super(fleet, node, "strip");
    this.rename(node);
    this.cells = [];
  }

  appear() {
    if (this.cells.length) return;
    const heat = this.root.querySelector(".heat");
    const count = this.node.gpus.length || 1;
    heat.setAttribute("viewBox", `0 0 ${count * CELL} 22`);
    heat.setAttribute("width", count * CELL);
    this.cells = Array.from({ length: count }, (_, at) => this.cell(heat, at));
  }

  cell(heat, at) {
    const group = document.createElementNS(SVG, "g");
    const part = (name, attributes) => {
      const made = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      return group.appendChild(made);
    };
    const title = group.appendChild(document.createElementNS(SVG, "title"));
    const box = { x: at * CELL + 1, width: CELL - 2 };
    part("rect", { ...box, y: 0, height: 22, rx: 2, class: "heat-bed" });
    const [ours, others] = [part("rect", { ...box, class: "heat-ours" }), part("rect", { ...box, fill: "url(#hatch)" })];
    heat.append(group);
    return { title, ours, others };
  }

  draw() {
    const { node } = this;
    const sample = newest.get(`s${node.id}`);
    const { used, total, load, temp } = totals(node);
    this.put("used", fixed(used, 0));
    this.put("total", fixed(total, 0));
    this.put("load", fixed(load, 0, " %"));
    this.put("temp", fixed(temp, 0, " °C"));
    this.drawHolders();
    if (sample) this.cells.forEach((cell, at) => this.fillCell(cell, node.gpus[at]?.[0] ?? null, sample));
  }

  fillCell(cell, index, sample) {
    const row = index === null ? null : gpuOf(sample, index);
    if (index !== null && !row) return this.heights(cell, 0, 0, 0, `${word("gpu", { i: index })}: ${word("stale")}`);
    const [used, total] = row ? [row[GPU.USED] / 1024, row[GPU.TOTAL] / 1024] : sample.mem.map((bytes) => bytes / GIB);
    const load = row ? row[GPU.LOAD] : sample.cpu;
    const others = row ? Math.min(used, othersOf(this.fleet, this.node, index, used * 1024) / 1024) : 0;
    const facts = [`${fixed(used, 1)} / ${fixed(total, 1, " GiB")}`, fixed(load, 0, " %")];
    if (row) facts.push(fixed(row[GPU.TEMPERATURE], 0, " °C"), fixed(row[GPU.POWER], 0, " W"));
    const name = row ? word("gpu", { i: index }) : word("memory");
    return this.heights(cell, (used - others) / total, others / total, load, `${name}: ${facts.join(", ")}`);
  }

  /** How high a cell is filled is its memory, how dark the load. */
  heights({ title, ours, others }, own, foreign, load, text) {
    const [low, high] = [22 * Math.min(1, own || 0), 22 * Math.min(1, foreign || 0)];
    ours.setAttribute("y", (22 - low).toFixed(1));
    ours.setAttribute("height", low.toFixed(1));
    ours.setAttribute("fill-opacity", (0.35 + (0.65 * (load ?? 0)) / 100).toFixed(2));
    others.setAttribute("y", (22 - low - high).toFixed(1));
    others.setAttribute("height", high.toFixed(1));
    if (title.textContent !== text) title.textContent = text;
  }

  drawHolders() {
    const ours = new Set(this.node.serves);
    const all = { ours: new Map(this.node.serves.map((name) => [name, 0])), others: [] };
    for (const [index] of this.node.gpus) {
      const found = holdersOf(this.fleet, this.node, index);
      for (const name of found.ours.keys()) if (!ours.has(name)) all.ours.set(name, 0);
      all.others.push(...found.others);
    }
    const told = JSON.stringify([[...all.ours], all.others]);
    if (told === this.told) return;
    this.told = told;
    this.part("who").replaceChildren(...shown(this.fleet, all, this.node.serves));
  }
}
