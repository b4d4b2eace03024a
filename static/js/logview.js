// The log view: which logs, all in one box by time or a box each.

import { Follower } from "./follower.js";
import { LogBar } from "./logbar.js";
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
    this.part = (name) => root.querySelector(`[data-${name}]`);
    Object.assign(this, { text: root.dataset, panes: [], followers: [], bar: new LogBar(root, this) });
  }

  /** Show these sources ({job, node, title}), "together" in one box or each in a pane; `mark`: a linked line. */
  show(sources, mode, mark = null) {
    this.stop();
    this.whole = () => this.show(sources, mode);
    const shown = sources.slice(0, AT_ONCE);
    const groups = mode === "panes" && shown.length > 1 ? shown.map((source) => [source]) : [shown];
    this.part("panes").classList.toggle("panes", groups.length > 1);
    for (const group of groups) this.open(group, groups.length > 1, mark);
    this.bar.press("follow", true);
    this.part("earlier").hidden = this.part("later").hidden = true;
    this.bar.levels();
    this.say(this.text.waiting);
  }

  open(group, titled, mark) {
    const made = this.part("pane-template").content.cloneNode(true).firstElementChild;
    made.querySelector("h3").textContent = group[0].title;
    made.querySelector("h3").hidden = !titled;
    this.part("panes").append(made);
    const linked = mark && group.some(({ job }) => job === mark.job) ? `log-${mark.job}-${mark.offset}` : "";
    const pane = new Pane(made.querySelector("[data-box]"), {
      name: group.length > 1 ? namer(group) : null, logs: group.length, mark: linked,
    });
    pane.scroll.onFollow = (on) => this.bar.press("follow", on);
    pane.wanted = this.part("filter").value.toLowerCase();
    this.panes.push(pane);
    for (const source of group) this.followers.push(this.follow(source, pane, mark?.job === source.job ? mark.offset : null));
  }

  follow({ job, asAsked }, pane, from) {
    return new Follower(job, {
      lines: (lines, unfinished) => {
        pane.add(job, lines, unfinished);
        this.say("");
        this.part("earlier").hidden = this.followers.length !== 1 || !this.followers[0]?.first;
        this.part("later").hidden = !this.apart();
      },
      skipped: ([start, end]) => pane.add(job, [this.gap(start, end)]),
      ended: (ended) => this.concluded(ended, asAsked),
      lost: () => this.say(this.text.lost),
      missing: () => this.say(this.text.missing),
      unread: () => this.say(this.text.unread),
      unkept: () => this.say(this.text.unkept),
    }, from);
  }

  /** Whether lines stand there that are not those at the log's end. */
  apart() {
    return this.followers.some(({ apart }) => apart);
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
