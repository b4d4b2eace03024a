// The fleet: every node's GPUs as tiles, or a strip a node where there are many; filters; and the sums above.

import { listen, newest } from "./samples.js";
import { StripView, TilesView, totals } from "./hosts.js";
import { holdersOf } from "./holders.js";
import { word } from "./words.js";

const MANY = 12; // more nodes than this are shown compact at first
const KEPT = "deck:fleet-view";
const place = () => document.getElementById("fleet");

class Fleet {
  constructor() {
    this.views = new Map(); // node id → its view
    this.seen = new Set(); // ids of those on the screen
    this.waiting = new Set(); // ids whose last hour is to be asked for
    this.eyes = new IntersectionObserver((entries) => this.look(entries), { rootMargin: "300px" });
    this.read();
    this.view = this.chosenView();
    this.controls();
    this.lay();
    listen(this.everything ? null : this.nodes.flatMap(({ id }) => [`s${id}`, `w${id}`]), (changed, skipped) => this.hear(changed, skipped));
  }

  /** What the page knows of nodes and deployments. */
  read() {
    const data = JSON.parse(document.getElementById("fleet-data").textContent);
    Object.assign(this, { nodes: data.nodes, jobs: data.jobs, deployments: data.deployments, everything: data.everything });
    this.known = new Set(data.active);
    this.byId = new Map(this.nodes.map((node) => [node.id, node]));
    document.querySelector("[data-legend]").hidden = !this.nodes.some((node) => node.gpus.length);
  }

  knows(job) {
    return this.known.has(job);
  }

  chosenView() {
    if (!("controls" in place().dataset)) return "tiles";
    return localStorage.getItem(KEPT) ?? (this.nodes.length > MANY ? "strips" : "tiles");
  }

  controls() {
    const bar = document.querySelector("[data-fleet-bar]");
    this.bar = bar;
    if (!bar) return;
    bar.hidden = this.nodes.length < 2;
    for (const name of ["cluster", "label"]) this.offer(bar.querySelector(`[name=${name}]`), name);
    bar.querySelector(`[value=${this.view}]`).checked = true;
    bar.addEventListener("input", ({ target }) => (target.name === "view" ? this.show(target.value) : this.filter()));
  }

  offer(select, name) {
    const values = new Set(this.nodes.flatMap((node) => (name === "cluster" ? [node.cluster] : node.labels)));
    values.delete("");
    const options = [...values].sort().map((value) => new Option(value, value, false, value === select.value));
    select.replaceChildren(new Option(select.dataset.any, ""), ...options);
    select.hidden = values.size < 1;
  }

  show(view) {
    this.view = view;
    localStorage.setItem(KEPT, view);
    for (const one of this.views.values()) one.root.remove();
    this.views.clear();
    this.seen.clear();
    this.lay();
  }

  /** Give each node a view, in the order of the nodes; views that are there stay. */
  lay() {
    const kind = this.view === "strips" ? StripView : TilesView;
    place().className = this.view === "strips" ? "panel strips" : "fleet";
    for (const [id, view] of this.views) {
      const node = this.byId.get(id);
      if (node && node.gpus.length === view.node.gpus.length) continue;
      view.root.remove();
      this.views.delete(id);
    }
    for (const node of this.nodes) {
      const known = this.views.get(node.id);
      if (known) known.rename(node);
      else this.views.set(node.id, this.watched(new kind(this, node)));
    }
    place().replaceChildren(...this.nodes.map((node) => this.views.get(node.id).root));
    this.filter();
    this.sum();
  }

  watched(view) {
    view.root.dataset.node = view.node.id;
    this.eyes.observe(view.root);
    return view;
  }

  look(entries) {
    for (const { target, isIntersecting } of entries) {
      const id = Number(target.dataset.node);
      const view = this.views.get(id);
      if (view?.root !== target) continue;
      if (!isIntersecting) {
        this.seen.delete(id);
        continue;
      }
      this.seen.add(id);
      view.appear();
      view.draw();
      if (view.fill) this.ask(id);
    }
  }

  /** Ask for the last hour of a node; of all that appear together, in one request. */
  ask(id) {
    if (this.views.get(id).filled) return;
    this.views.get(id).filled = true;
    this.waiting.add(id);
    this.asking ??= setTimeout(() => this.fetch(), 50);
  }

  async fetch() {
    const ids = [...this.waiting].slice(0, 60);
    for (const id of ids) this.waiting.delete(id);
    this.asking = this.waiting.size ? setTimeout(() => this.fetch(), 250) : undefined;
    try {
      const answer = await fetch(`/telemetry/?nodes=${ids.join(",")}`);
      if (!answer.ok) return;
      for (const [id, lines] of Object.entries(await answer.json())) this.views.get(Number(id))?.fill?.(lines);
    } catch {
      // the lines begin with what comes live
    }
  }

  hear(changed, skipped) {
    if (!place()) return false;
    for (const id of this.seen) if (changed.has(`s${id}`) || changed.has(`w${id}`)) this.views.get(id)?.draw();
    if (skipped) for (const id of this.seen) {
      this.views.get(id).filled = false;
      if (this.views.get(id).fill) this.ask(id);
    }
    if (this.bar?.querySelector("[name=free]").value) this.filter();
    this.sum();
    return true;
  }

  filter() {
    if (!this.bar) return;
    const value = (name) => this.bar.querySelector(`[name=${name}]`).value.trim().toLowerCase();
    const [text, state, cluster, label, free] = ["text", "state", "cluster", "label", "free"].map(value);
    let count = 0;
    for (const node of this.nodes) {
      const { used, total } = totals(node);
      const fits =
        node.name.toLowerCase().includes(text) &&
        (!state || node.state === state) &&
        (!cluster || node.cluster.toLowerCase() === cluster) &&
        (!label || node.labels.some((one) => one.toLowerCase() === label)) &&
        (!free || (used != null && total - used >= Number(free)));
      this.views.get(node.id).root.hidden = !fits;
      count += fits;
    }
    document.querySelector("[data-none]").hidden = count > 0 || !this.nodes.length;
    this.bar.querySelector("[data-count]").textContent = word("shown", { shown: count, all: this.nodes.length });
  }

  /** The sums at the head of the page. */
  sum() {
    const put = (name, text) => {
      const found = document.querySelector(`[data-sum="${name}"]`);
      if (found && found.textContent !== text) found.textContent = text;
    };
    let [used, total, busy, others, servers] = [0, 0, 0, 0, { generated: 0, running: 0, waiting: 0 }];
    for (const node of this.nodes) {
      const now = totals(node);
      used += now.used ?? 0;
      total += now.total ?? 0;
      for (const [index] of node.gpus) {
        const held = holdersOf(this, node, index);
        busy += held.ours.size > 0;
        others += held.others.length > 0;
      }
    }
    const fresh = Date.now() / 1000 - 60;
    for (const [name, sample] of newest) {
      if (name[0] !== "e" || sample.t < fresh) continue;
      servers = { generated: servers.generated + (sample.generation ?? 0), running: servers.running + (sample.running ?? 0), waiting: servers.waiting + (sample.waiting ?? 0) };
    }
    put("used", used.toFixed(used >= 100 ? 0 : 1));
    put("total", total.toFixed(total >= 100 ? 0 : 1));
    put("busy", String(busy));
    put("others", others ? word("others", { n: others }) : "");
    for (const [name, value] of Object.entries(servers)) put(name, value.toFixed(0));
  }

  /** The page was told of changes: read again what it knows. */
  again() {
    this.read();
    if (this.bar) {
      this.bar.hidden = this.nodes.length < 2;
      for (const name of ["cluster", "label"]) this.offer(this.bar.querySelector(`[name=${name}]`), name);
    }
    this.lay();
    for (const id of this.seen) this.views.get(id)?.draw();
  }
}

let fleet = place() ? new Fleet() : null;
document.addEventListener("htmx:oobAfterSwap", () => {
  if (!place()) return;
  if (fleet) fleet.again();
  else fleet = new Fleet();
});
