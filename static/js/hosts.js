// One node of the fleet: its tiles, or its strip of GPUs. Only what is on the screen is drawn.

import { GPU, newest } from "./samples.js";
import { Tile } from "./tiles.js";
import { word } from "./words.js";

const GIB = 2 ** 30;
const clone = (name) => document.getElementById(name).content.firstElementChild.cloneNode(true);

/** What the whole node has in use: GPU memory where it has GPUs, else its own. In GiB. */
export function totals(node) {
  const sample = newest.get(`s${node.id}`);
  if (!sample) return { used: null, total: node.gpus.length ? node.gpus.reduce((all, one) => all + one[2], 0) / 1024 : node.memory / GIB };
  if (!node.gpus.length) return { used: sample.mem[0] / GIB, total: sample.mem[1] / GIB, load: sample.cpu, temp: null };
  const sum = (column) => sample.gpus.reduce((all, row) => all + (row[column] ?? 0), 0);
  const most = (column) => Math.max(...sample.gpus.map((row) => row[column] ?? 0));
  if (!sample.gpus.length) return { used: null, total: null };
  return { used: sum(GPU.USED) / 1024, total: sum(GPU.TOTAL) / 1024, load: sum(GPU.LOAD) / sample.gpus.length, temp: most(GPU.TEMPERATURE) };
}

export class View {
  constructor(fleet, node, template) {
    Object.assign(this, { fleet, node, root: clone(template) });
    this.part = (name) => this.root.querySelector(`[data-${name}]`);
    Object.assign(this.part("name"), { textContent: node.name, href: node.url });
  }

  put(name, text) {
    const place = this.part(name);
    if (place.textContent !== text) place.textContent = text;
  }

  /** What the page knows of the node changed. */
  rename(node) {
    this.node = node;
    this.part("state").replaceChildren(document.getElementById(`state-${node.state}`).content.cloneNode(true));
  }
}

export class TilesView extends View {
  constructor(fleet, node) {
    super(fleet, node, "host");
    this.tiles = [];
    this.root.classList.toggle("is-wide", node.gpus.length > 2);
    this.part("tiles").classList.toggle("tiles-1", node.gpus.length < 2);
    this.part("tiles").classList.toggle("tiles-2", node.gpus.length === 2);
    this.rename(node);
  }

  rename(node) {
    super.rename(node);
    for (const tile of this.tiles) tile.node = node;
    this.part("about").textContent = node.gpus.length > 1 ? word("gpus", { n: node.gpus.length, name: node.gpus[0][1] }) : node.address || word("this-machine");
    this.part("cluster").textContent = node.cluster;
    this.part("cluster").hidden = !node.cluster || node.cluster === node.name;
    this.part("reason").textContent = node.reason;
    this.part("reason").hidden = !node.reason;
  }

  /** It came onto the screen: now it needs its tiles. */
  appear() {
    if (this.tiles.length) return;
    const { node } = this;
    this.tiles = (node.gpus.length ? node.gpus : [null]).map((gpu) => new Tile(this.fleet, node, gpu));
    this.part("tiles").replaceChildren(...this.tiles.map((tile) => tile.root));
  }

  /** The loads of the last hour, as the server kept them. */
  fill({ t, cpu, gpus }) {
    for (const tile of this.tiles) tile.line.fill(t, tile.index === null ? cpu : gpus[tile.index] ?? []);
    this.draw();
  }

  draw() {
    for (const tile of this.tiles) tile.draw();
  }
}
