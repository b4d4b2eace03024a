// The last hour of the nodes that come onto the screen, asked for together.

const TOGETHER = 60;
const [SOON, LATER] = [50, 250]; // milliseconds

export class Replay {
  /** `found(id, lines)` gets the loads of a node's last hour. */
  constructor(found) {
    Object.assign(this, { found, waiting: new Set(), asked: new Set() });
  }

  /** Ask for a node, once. */
  ask(id) {
    if (this.asked.has(id)) return;
    this.asked.add(id);
    this.waiting.add(id);
    this.timer ??= setTimeout(() => this.fetch(), SOON);
  }

  /** They may be asked for again: something was missed, or their places are new. */
  forget() {
    this.asked.clear();
  }

  async fetch() {
    const ids = [...this.waiting].slice(0, TOGETHER);
    for (const id of ids) this.waiting.delete(id);
    this.timer = this.waiting.size ? setTimeout(() => this.fetch(), LATER) : undefined;
    try {
      const answer = await fetch(`/telemetry/?nodes=${ids.join(",")}`);
      if (!answer.ok) return;
      for (const [id, lines] of Object.entries(await answer.json())) this.found(Number(id), lines);
    } catch {
      // the lines begin with what comes live
    }
  }
}
