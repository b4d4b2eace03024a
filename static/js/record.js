// Keeps a conversation on the server while it goes on. One thing after another; what cannot be kept is told, and the
// conversation goes on.

import { address } from "./columns.js";

const BASE = "/playground/conversations/";
const csrf = () => document.querySelector("[name=csrfmiddlewaretoken]").value;

/** Ask the server for JSON; raises an Error with its sentence. */
export async function call(path, method = "GET", body = undefined) {
  const headers = { "X-CSRFToken": csrf(), ...(body && { "Content-Type": "application/json" }) };
  const response = await fetch(BASE + path, { method, headers, body: body && JSON.stringify(body) });
  const content = response.status === 204 ? null : await response.json().catch(() => null);
  if (response.ok) return content;
  throw new Error(content?.error?.message ?? `HTTP ${response.status} ${response.statusText}`);
}

const figure = (value) => (typeof value === "number" ? Math.round(value * 100) / 100 : value);

export class Record {
  /** `failed(error)` is told what could not be kept. */
  constructor(failed, id = null) {
    Object.assign(this, { id, failed, queue: Promise.resolve() });
  }

  later(work) {
    this.queue = this.queue.then(work).catch(this.failed);
    return this.queue;
  }

  begin(title, copied = {}) {
    return this.later(async () => {
      this.id = (await call("", "POST", { title, ...copied })).id;
      address({ conversation: this.id });
    });
  }

  add(message) {
    return this.later(async () => {
      if (this.id) await call(`${this.id}/messages/`, "POST", message);
    });
  }

  prompt({ number, prompt }, settings) {
    return this.add({ role: "prompt", turn: number, ...prompt, settings });
  }

  answer({ number }, { model, now, state, why, mode }) {
    const figures = Object.fromEntries(Object.entries(now.figures).map(([name, value]) => [name, figure(value)]));
    const { text, reasoning } = now;
    return this.add({ role: "answer", turn: number, model, text, reasoning, state, why: why.slice(0, 2000), mode, figures });
  }
}
