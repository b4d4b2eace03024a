// Live tiles: a memory bar, a line of the last ten minutes, and numbers that keep their width.

import { follow, metric } from "./samples.js";

const SECONDS = 600;
const POINTS = 60;

function spark(samples, value) {
  const end = samples.at(-1).t;
  const sums = new Map();
  for (const sample of samples) {
    const place = Math.floor((sample.t - end + SECONDS) / (SECONDS / POINTS));
    const found = value(sample);
    if (place < 0 || found == null) continue;
    const [sum, count] = sums.get(place) ?? [0, 0];
    sums.set(place, [sum + found, count + 1]);
  }
  let path = "";
  let before = -2;
  for (const [place, [sum, count]] of sums) {
    const point = `${((place / POINTS) * 300).toFixed(1)} ${(100 - sum / count).toFixed(1)}`;
    path += `${place === before + 1 ? "L" : "M"}${point}`; // a gap stays a gap
    before = place;
  }
  return path;
}

class Tile {
  constructor(tile, node) {
    this.tile = tile;
    this.part = (name) => tile.querySelector(`[data-${name}]`);
    this.memory = metric(tile.dataset.memory);
    this.busy = metric(tile.dataset.busy);
    follow(node, (samples) => this.update(samples));
  }

  put(name, text) {
    const place = this.part(name);
    if (place) place.textContent = text;
  }

  update(samples) {
    if (!this.tile.isConnected) return false;
    const last = samples.at(-1);
    const [used, total, busy] = [this.memory.value(last), this.memory.top(last), this.busy.value(last)];
    if (used == null || !total) return true;
    const percent = (100 * used) / total;
    this.part("fill").setAttribute("width", `${percent.toFixed(1)}%`);
    this.put("used", used.toFixed(1));
    this.put("total", total.toFixed(1));
    this.put("percent", `${percent.toFixed(0)} %`);
    this.put("load", busy == null ? "–" : `${busy.toFixed(0)} %`);
    const gpu = this.memory.gpu(last);
    this.put("temp", gpu?.temp == null ? "–" : `${gpu.temp} °C`);
    this.put("power", gpu?.power == null ? "–" : `${Math.round(gpu.power)} W`);
    this.part("line")?.setAttribute("d", spark(samples, this.busy.value));
    return true;
  }
}

/** Bring the tiles to life that are not yet; lists are fetched again when a row changes. */
function start() {
  for (const tile of document.querySelectorAll("[data-tile]:not([data-started])")) {
    tile.dataset.started = "";
    new Tile(tile, tile.dataset.tile);
  }
}

start();
document.addEventListener("htmx:oobAfterSwap", start);
