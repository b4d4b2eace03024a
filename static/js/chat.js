// The conversation that is open: its turns, the answers that run, and its record on the server.

import { Answer, toEnd } from "./answer.js";
import { ask } from "./asking.js";
import { columns } from "./columns.js";
import { draw, show } from "./panel.js";
import { Record } from "./record.js";
import { requestFor } from "./request.js";
import { settings } from "./settings.js";
import { Turn } from "./turn.js";

export class Chat {
  /** `told`: the sentences of failures; `on.edit(turn)`, `on.busy(running)`, `on.unsaved(error)` are called. */
  constructor(box, told, on) {
    Object.assign(this, { box, told, on, empty: box.firstElementChild, running: new Map(), turns: [] });
    this.record = new Record(on.unsaved);
  }

  clear(id = null) {
    this.stop();
    Object.assign(this, { turns: [], record: new Record(this.on.unsaved, id) });
    this.box.replaceChildren(this.empty);
    this.on.busy(0);
  }

  stop() {
    this.halted = true;
    for (const stop of this.running.values()) stop.abort();
  }

  turn(prompt, at) {
    if (!this.turns.length) this.box.replaceChildren();
    const turn = new Turn(this.turns.length, prompt, this.box, this.on.edit, at);
    this.turns.push(turn);
    return turn;
  }

  history(turn, model) {
    return this.turns.slice(0, turn.number).map((before) => before.said(model)).filter(Boolean);
  }

  build(turn, column) {
    return (mode) => requestFor(column.name, mode, settings(), this.history(turn, column.name), turn.prompt);
  }

  /** A new prompt to all columns; in place of turn `instead` and those after it when that is edited. */
  async send(prompt, instead = null) {
    if (instead) this.branch(instead.number);
    if (!this.record.id) this.record.begin(prompt.text || "…");
    const turn = this.turn(prompt);
    this.record.prompt(turn, settings());
    const answers = columns().map((column) => this.answer(turn, column));
    show([...turn.by.values()].map((versions) => versions.answer));
    toEnd();
    await Promise.all(answers);
  }

  /** Go on from before turn `number` in a conversation of its own; the one until now is kept as it is. */
  branch(number) {
    const before = this.record;
    for (const turn of this.turns.splice(number)) turn.section.remove();
    this.record = new Record(this.on.unsaved);
    if (number && before.id) this.record.begin(this.turns[0].prompt.text, { copy_of: before.id, before: number });
  }

  async answer(turn, column, beside = false) {
    const versions = turn.versions(column.name);
    const answer = new Answer(column.name, column.server, versions.box);
    const [stop, record] = [new AbortController(), this.record];
    versions.beside ||= beside;
    this.wire(turn, versions, answer, stop);
    this.running.set(answer, stop);
    this.on.busy(this.running.size);
    await ask(answer, column, this.build(turn, column), turn.prompt.images.length > 0, this.told, stop.signal);
    this.running.delete(answer);
    draw();
    this.on.busy(this.running.size);
    record.answer(turn, answer);
  }

  wire(turn, versions, answer, stop = null) {
    versions.add(answer);
    answer.part("stop-one").onclick = () => stop?.abort();
    answer.part("again").onclick = () => this.answer(turn, this.column(answer.model));
    answer.part("code").onclick = () => show([answer], true);
  }

  column(name) {
    return columns().find((column) => column.name === name) ?? { name, server: "", base: false };
  }

  /** Ask every prompt again, in order: the old and the new answers stand beside each other. */
  async again() {
    this.halted = false;
    for (const turn of this.turns) {
      await Promise.all(columns().map((column) => this.answer(turn, column, true)));
      if (this.halted) return;
    }
  }
}
