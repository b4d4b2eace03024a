// The fleet: every node's GPUs as tiles, or a strip a node where there are many. Only what is on the screen is drawn.

import { Filters } from "./filters.js";
import { TilesView } from "./hosts.js";
import { Known } from "./known.js";
import { Replay } from "./replay.js";
import { listen } from "./samples.js";
import { StripView } from "./strips.js";
import { sum } from "./sums.js";

const place = () => document.getElementById("fleet");

class Fleet {
  constructor() {
    this.views = new Map(); // node id → its view
    this.seen = new Set(); // ids of those on the screen
    this.known = new Known();
    this.replay = new Replay((id, lines) => this.views.get(id)?.fill?.(lines));
    this.filters = new Filters(this.known, { shown: () => this.relay(), changed: () => this.filter() });
    this.eyes = new IntersectionObserver((entries) => this.look(entries), { rootMargin: "300px" });
    this.lay();
    listen(this.known.names, (changed, skipped) => this.hear(changed, skipped));
  }

  /** Everything anew, in another view. */
  relay() {
    for (const one of this.views.values()) one.root.remove();
    this.views.clear();
    this.seen.clear();
    this.replay.forget();
    this.lay();
  }

  /** Give each node a view, in the order of the nodes; views that are there stay. */
  lay() {
    const strips = this.filters.view === "strips";
    const kind = strips ? StripView : TilesView;
    place().className = strips ? "panel strips" : "fleet";
    for (const [id, view] of this.views) {
      if (this.known.byId.get(id)?.gpus.length === view.node.gpus.length) continue;
      view.root.remove();
      this.views.delete(id);
    }
    for (const node of this.known.nodes) {
      const there = this.views.get(node.id);
      if (there) there.rename(node);
      if (there) continue;
      const view = new kind(this.known, node);
      view.root.dataset.node = node.id;
      this.eyes.observe(view.root);
      this.views.set(node.id, view);
    }
    place().replaceChildren(...this.known.nodes.map((node) => this.views.get(node.id).root));
    this.filter();
    sum(this.known);
  }

  look(entries) {
    for (const { target, isIntersecting } of entries) {
      const id = Number(target.dataset.node);
      const view = this.views.get(id);
      if (view?.root !== target) continue;
      this.seen[isIntersecting ? "add" : "delete"](id);
      if (!isIntersecting) continue;
      view.appear();
      view.draw();
      if (view.fill) this.replay.ask(id);
    }
  }

  hear(changed, skipped) {
    if (!place()) return false;
    for (const id of this.seen) if (changed.has(`s${id}`) || changed.has(`w${id}`)) this.views.get(id)?.draw();
    if (skipped) {
      this.replay.forget();
      for (const id of this.seen) if (this.views.get(id)?.fill) this.replay.ask(id);
    }
    if (this.filters.restless) this.filter();
    sum(this.known);
    return true;
  }

  filter() {
    this.filters.apply(this.views.values());
  }

  /** The page was told of changes: read again what it knows. */
  again() {
    this.known.read();
    this.filters.offer();
    this.lay();
    for (const id of this.seen) this.views.get(id)?.draw();
  }
}

let fleet = place() ? new Fleet() : null;
document.addEventListener("htmx:oobAfterSwap", () => {
  if (place() && fleet) fleet.again();
  else if (place()) fleet = new Fleet();
});
