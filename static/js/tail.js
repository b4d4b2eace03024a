// Chooses what the log view shows: a log of the list, all of them, or the line that the page's address names.

import { LogView } from "./logview.js";

const NAMES = ["node", "mode"]; // what is asked besides, where there are several logs
const LINK = /^#log-([0-9a-f-]{36})-(\d{1,15})$/;

class Tail {
  constructor(root) {
    this.root = root;
    this.part = (name) => root.querySelector(`select[data-${name}], a[data-${name}]`);
    this.view = new LogView(root);
    root.addEventListener("change", (event) => {
      if (event.target.matches("[data-source]")) this.choose(event.target.value);
      if (event.target.matches("select[data-node], [data-mode]")) this.show(true);
    });
    // The list of sources is fetched again with the page: keep what the reader chose, else go with the newest.
    document.addEventListener("htmx:oobAfterSwap", () => this.settle());
    addEventListener("hashchange", () => this.linked());
    this.linked() || this.settle();
  }

  options() {
    return [...this.part("source").options].filter((option) => option.dataset.node !== undefined);
  }

  choose(value) {
    this.chosen = value;
    this.part("source").value = value;
    this.show(true);
  }

  linked() {
    const [, job, offset] = LINK.exec(location.hash) ?? [];
    if (!job || !this.options().some((option) => option.value === job)) return false;
    this.chosen = this.part("source").value = job;
    this.show(true, { job, offset: Number(offset) });
    return true;
  }

  settle() {
    const select = this.part("source");
    if (!select) return;
    const offered = [...select.options].map((option) => option.value);
    if (offered.includes(this.chosen)) select.value = this.chosen;
    for (const name of NAMES) if (this.kept?.[name] && this.part(name)) this.part(name).value = this.kept[name];
    this.show(false);
    this.view.conclude(() => this.asAsked(this.shown)); // that it was asked to end may only now be known
  }

  asAsked(job) {
    return this.options().find((option) => option.value === job)?.dataset.asAsked !== undefined;
  }

  /** The chosen log; for "all" the newest of each kind and node, of the chosen node where one is. */
  wanted() {
    const value = this.part("source").value;
    const node = this.part("node")?.value;
    if (value !== "all") return this.options().filter((option) => option.value === value);
    const newest = new Map();
    for (const option of this.options()) {
      const kind = `${option.dataset.kind} ${option.dataset.node}`;
      if (!(newest.get(kind)?.dataset.at > option.dataset.at)) newest.set(kind, option);
    }
    return [...newest.values()].filter((option) => !node || option.dataset.node === node);
  }

  show(again, mark = null) {
    const sources = this.wanted().map((option) => ({
      job: option.value,
      node: option.dataset.node,
      title: option.textContent,
      asAsked: () => this.asAsked(option.value),
    }));
    const all = this.part("source").value === "all";
    const parts = NAMES.filter((name) => this.part(name));
    for (const name of parts) this.part(name).hidden = !all;
    this.kept = Object.fromEntries(parts.map((name) => [name, this.part(name).value]));
    const shown = sources.map(({ job }) => job).join();
    if (!sources.length || (shown === this.shown && !again)) return;
    this.shown = shown;
    this.part("download").hidden = sources.length > 1;
    this.part("download").href = `/jobs/${sources[0].job}/log`;
    this.view.show(sources, this.part("mode")?.value ?? "together", mark);
  }
}

const viewers = [...document.querySelectorAll("[data-tail]")].map((root) => new Tail(root));

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-log]");
  if (!button || !viewers.length) return;
  viewers[0].choose(button.dataset.log);
  viewers[0].root.scrollIntoView({ behavior: "smooth", block: "nearest" });
});
