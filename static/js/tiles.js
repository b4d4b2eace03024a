// A tile: one GPU, or the memory and CPU of a node that has none. Numbers keep their width.

import { GPU, gpuOf, newest } from "./samples.js";
import { Line } from "./line.js";
import { holdersOf, IDLE, othersOf, placedOn, shown } from "./holders.js";
import { word } from "./words.js";

const GIB = 2 ** 30;
const number = (value, digits, unit = "") => (value == null ? "–" : `${value.toFixed(digits)}${unit}`);

/** What a tile says of a sample: GiB, percent and so on; null where it is not known. */
function reading(sample, index) {
  if (index === null) {
    const [used, total] = sample.mem;
    return { used: used == null ? null : used / GIB, total: total == null ? null : total / GIB, load: sample.cpu };
  }
  const row = gpuOf(sample, index);
  if (!row) return null;
  return { used: row[GPU.USED] / 1024, total: row[GPU.TOTAL] / 1024, load: row[GPU.LOAD], temp: row[GPU.TEMPERATURE], power: row[GPU.POWER] };
}

export class Tile {
  /** `gpu`: [index, name, MiB], or null for the node's own memory. */
  constructor(fleet, node, gpu) {
    Object.assign(this, { fleet, node, gpu, index: gpu ? gpu[0] : null, line: new Line() });
    this.root = document.getElementById("tile").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.root.querySelector(`[data-${name}]`);
    this.part("title").textContent = gpu ? word("gpu", { i: gpu[0] }) : word("memory");
    this.part("detail").textContent = gpu ? gpu[1] : node.cpus ? word("cores", { n: node.cpus }) : "";
    this.part("load-name").textContent = word(gpu ? "load" : "cpu");
    this.part("total").textContent = gpu ? (gpu[2] / 1024).toFixed(1) : node.memory ? (node.memory / GIB).toFixed(1) : "–";
    if (!gpu) for (const one of this.root.querySelectorAll("[data-gpu-only]")) one.remove();
  }

  put(name, text) {
    const place = this.part(name);
    if (place && place.textContent !== text) place.textContent = text;
  }

  draw() {
    const sample = newest.get(`s${this.node.id}`);
    const now = sample && reading(sample, this.index);
    this.drawHolders((now?.used ?? 0) * 1024);
    if (!now || now.total == null) return;
    this.line.add(sample.t, now.load);
    const percent = now.total ? (100 * (now.used ?? 0)) / now.total : 0;
    const foreign = this.gpu ? othersOf(this.fleet, this.node, this.index, (now.used ?? 0) * 1024) : 0;
    const others = Math.min(percent, now.total ? (100 * foreign) / 1024 / now.total : 0);
    this.bar("ours", 0, percent - others);
    this.bar("others", percent - others, others);
    this.part("ours").parentNode.setAttribute("aria-label", word("used", { used: number(now.used, 1), total: number(now.total, 1) }));
    this.put("used", number(now.used, 1));
    this.put("total", number(now.total, 1));
    this.put("percent", number(percent, 0, " %"));
    this.put("load", number(now.load, 0, " %"));
    this.put("temp", number(now.temp, 0, " °C"));
    this.put("power", number(now.power, 0, " W"));
    const line = this.part("line");
    line.setAttribute("d", this.line.path(sample.t));
    line.parentNode.setAttribute("aria-label", word("line", { now: number(now.load, 0, " %") }));
  }

  bar(name, from, width) {
    this.part(name).setAttribute("x", `${from.toFixed(1)}%`);
    this.part(name).setAttribute("width", `${Math.max(0, width).toFixed(1)}%`);
  }

  drawHolders(used) {
    const holders = holdersOf(this.fleet, this.node, this.index);
    const own = placedOn(this.node, this.index);
    const nobody = !this.gpu ? "" : used > IDLE ? word("busy") : word("free");
    const told = JSON.stringify([[...holders.ours], holders.others, own, nobody]);
    if (told === this.told) return;
    this.told = told;
    const who = shown(this.fleet, holders, own);
    if (!who.length) who.push(Object.assign(document.createElement("span"), { className: "faint", textContent: nobody }));
    this.part("who").replaceChildren(...who);
  }
}
