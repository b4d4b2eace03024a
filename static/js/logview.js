// The log view: which logs, all in one box by time or a box each, and what is shown of them.

import { Follower } from "./follower.js";
import { Pane } from "./pane.js";

const AT_ONCE = 12; // logs that are followed together

/** What a source is called beside others: as short as tells them apart, and a number for its colour. */
function namer(sources) {
  const what = ({ title }) => title.split(" · ")[0];
  const ways = [({ node }) => node, what, (source) => `${source.node} ${what(source)}`, ({ title }) => title];
  const short = ways.find((way) => new Set(sources.map(way)).size === sources.length) ?? ways.at(-1);
  const names = new Map(sources.map((source, at) => [source.job, { text: short(source), number: (at % 6) + 1 }]));
  return (job) => names.get(job);
}

export class LogView {
  constructor(root) {
    const part = (name) => root.querySelector(`[data-${name}]`);
    Object.assign(this, { root, part, text: root.dataset, panes: [], followers: [], sources: [] });
    this.template = part("pane-template");
    part("follow").onclick = () => this.panes.forEach((pane) => pane.follow(part("follow").getAttribute("aria-pressed") !== "true"));
    part("wrap").onclick = ({ currentTarget }) => this.wrap(currentTarget);
    part("filter").oninput = ({ target }) => this.panes.forEach((pane) => pane.filter(target.value));
    part("level").onchange = () => this.levels();
    part("error").onclick = () => this.panes.some((pane) => pane.firstError());
    part("earlier").onclick = () => this.earlier();
    root.addEventListener("click", (event) => event.target.closest("a.at") && this.link(event));
  }

  /** Show these sources ({job, node, title}), "together" in one box or each in a pane; `mark`: a linked line. */
  show(sources, mode, mark = null) {
    this.stop();
    this.sources = sources.slice(0, AT_ONCE);
    const together = mode !== "panes" || this.sources.length < 2;
    const groups = together ? [this.sources] : this.sources.map((source) => [source]);
    this.part("panes").classList.toggle("panes", groups.length > 1);
    for (const group of groups) this.open(group, groups.length > 1, mark);
    this.followed(true);
    this.part("earlier").hidden = true;
    this.part("error").hidden = true;
    this.levels();
    this.say(this.text.waiting);
  }

  open(group, titled, mark) {
    const made = this.template.content.cloneNode(true).firstElementChild;
    made.querySelector("h3").textContent = group[0].title;
    made.querySelector("h3").hidden = !titled;
    this.part("panes").append(made);
    const name = group.length > 1 ? namer(group) : null;
    const linked = mark && group.some(({ job }) => job === mark.job) ? `log-${mark.job}-${mark.offset}` : "";
    const pane = new Pane(made.querySelector("[data-box]"), { name, mark: linked, onErrors: () => this.countErrors() });
    pane.onFollow = (on) => this.followed(on);
    pane.wanted = this.part("filter").value.toLowerCase();
    this.panes.push(pane);
    for (const source of group) this.followers.push(this.follow(source, pane, mark?.job === source.job ? mark.offset : null));
  }

  follow({ job, asAsked }, pane, from) {
    const follower = new Follower(job, {
      lines: (lines, unfinished) => {
        pane.add(job, lines, unfinished);
        this.say("");
        this.part("earlier").hidden = this.followers.length !== 1 || !this.followers[0]?.first;
      },
      skipped: ([start, end]) => pane.add(job, [this.gap(start, end)]),
      ended: (ended) => this.concluded(ended, asAsked),
      lost: () => this.say(this.text.lost),
      missing: () => this.say(this.text.missing),
    }, from);
    return follower;
  }

  gap(start, end) {
    return { offset: start, time: 0, text: this.text.skipped.replace("{mib}", ((end - start) / 2 ** 20).toFixed(1)) };
  }

  stop() {
    for (const part of [...this.followers, ...this.panes]) part.stop();
    Object.assign(this, { followers: [], panes: [] });
    this.part("panes").replaceChildren();
  }

  say(text) {
    this.part("status").textContent = text;
  }

  followed(on) {
    this.part("follow").setAttribute("aria-pressed", on);
  }

  wrap(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    this.part("panes").classList.toggle("is-unwrapped", !on);
  }

  levels() {
    this.part("panes").dataset.only = this.part("level").value;
    this.panes.forEach((pane) => pane.following && pane.follow(true));
  }

  countErrors() {
    const count = this.panes.reduce((sum, pane) => sum + pane.errors, 0);
    const button = this.part("error");
    button.hidden = count === 0;
    button.querySelector("[data-count]").textContent = count;
  }

  async earlier() {
    const [button, follower] = [this.part("earlier"), this.followers[0]];
    button.disabled = true;
    try {
      const lines = await follower.earlier();
      this.panes[0].prepend(follower.job, lines);
      button.hidden = !follower.first;
    } catch {
      this.say(this.text.unread);
    } finally {
      button.disabled = false;
    }
  }

  /** The link of a line is in the address from now on, and in the clipboard where there is one. */
  link(event) {
    event.preventDefault();
    const link = event.target.closest("a.at");
    history.replaceState(null, "", link.getAttribute("href"));
    navigator.clipboard?.writeText(location.href).then(() => this.say(this.text.copied));
    this.panes.find((pane) => pane.box.contains(link)).reveal(link.parentElement);
  }

  /** What is said once every log that is shown has ended. */
  concluded({ state, status }, asAsked) {
    if (this.followers.some(({ ended }) => !ended)) return;
    const ended = state === "lost" ? this.text.gone : this.text.ended.replace("{status}", status);
    this.say(asAsked() ? this.text.asAsked : ended);
  }

  conclude(asAsked) {
    const [follower] = this.followers;
    if (follower?.ended) this.concluded(follower.ended, asAsked);
  }
}
