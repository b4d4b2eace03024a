// The filters of the fleet, and how it is shown.

import { totals } from "./hosts.js";
import { word } from "./words.js";

const MANY = 12; // more nodes than this are shown compact at first
const KEPT = "deck:fleet-view";

export class Filters {
  /** `shown(view)` is called when another view is chosen, `changed()` when another filter is. */
  constructor(known, { shown, changed }) {
    Object.assign(this, { known, bar: document.querySelector("[data-fleet-bar]") });
    this.view = this.bar ? localStorage.getItem(KEPT) ?? (known.nodes.length > MANY ? "strips" : "tiles") : "tiles";
    if (!this.bar) return;
    this.bar.querySelector(`[value=${this.view}]`).checked = true;
    this.bar.addEventListener("input", ({ target }) => {
      if (target.name !== "view") return changed();
      this.view = target.value;
      localStorage.setItem(KEPT, this.view);
      return shown();
    });
    this.offer();
  }

  /** The clusters and labels that there are. */
  offer() {
    if (!this.bar) return;
    this.bar.hidden = this.known.nodes.length < 2;
    for (const name of ["cluster", "label"]) {
      const select = this.bar.querySelector(`[name=${name}]`);
      const values = new Set(this.known.nodes.flatMap((node) => (name === "cluster" ? [node.cluster] : node.labels)));
      values.delete("");
      const options = [...values].sort().map((value) => new Option(value, value, false, value === select.value));
      select.replaceChildren(new Option(select.dataset.any, ""), ...options);
      select.hidden = values.size < 1;
    }
  }

  value(name) {
    return this.bar?.querySelector(`[name=${name}]`).value.trim().toLowerCase() ?? "";
  }

  /** Whether what fits may change with each sample. */
  get restless() {
    return this.value("free") !== "";
  }

  fits(node) {
    const [text, state, cluster, label, free] = ["text", "state", "cluster", "label", "free"].map((name) => this.value(name));
    const { used, total } = totals(node);
    return (
      node.name.toLowerCase().includes(text) &&
      (!state || node.state === state) &&
      (!cluster || node.cluster.toLowerCase() === cluster) &&
      (!label || node.labels.some((one) => one.toLowerCase() === label)) &&
      (!free || (used != null && total - used >= Number(free)))
    );
  }

  /** Hide the views of nodes that do not fit. */
  apply(views) {
    if (!this.bar) return;
    let count = 0;
    for (const { node, root } of views) {
      root.hidden = !this.fits(node);
      count += !root.hidden;
    }
    document.querySelector("[data-none]").hidden = count > 0 || !this.known.nodes.length;
    this.bar.querySelector("[data-count]").textContent = word("shown", { shown: count, all: this.known.nodes.length });
  }
}
