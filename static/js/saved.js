// Opening a conversation that was kept.

import { Answer } from "./answer.js";
import { address, choose, columns } from "./columns.js";
import { call } from "./record.js";
import { requestFor } from "./request.js";
import { restore } from "./settings.js";

function told(chat, turn, settings, { model, server, text, reasoning, state, why, mode, figures }) {
  const answer = new Answer(model, server, turn.versions(model).box);
  answer.as(mode);
  answer.now = { text, reasoning, figures };
  answer.request = requestFor(model, mode, settings, chat.history(turn, model), turn.prompt);
  chat.wire(turn, turn.versions(model), answer);
  answer.end(state, why);
}

/** Show conversation `id` in `chat`, with the settings and the deployments of its last prompt. Raises Error. */
export async function openSaved(chat, id) {
  const { turns } = await call(`${id}/`);
  chat.clear(id);
  for (const { prompt, answers } of turns) {
    const turn = chat.turn({ text: prompt.text, images: prompt.images }, prompt.at);
    for (const answer of answers) told(chat, turn, prompt.settings, answer);
  }
  chat.on.busy(0);
  restore(turns.at(-1)?.prompt.settings);
  address({ conversation: id });
  const models = [...new Set((turns.at(-1)?.answers ?? []).map(({ model }) => model))];
  if (models.length) choose(models);
}

/** Mark the answers that an earlier start gave, or a deployment that is gone. */
export function mark(chat) {
  const servers = new Map(columns().map(({ name, server }) => [name, server]));
  const known = new Set([...document.querySelectorAll("[data-pick] option")].map((option) => option.value));
  for (const turn of chat.turns) {
    for (const [model, versions] of turn.by) {
      if (servers.has(model) || !known.has(model)) versions.mark(servers.get(model));
    }
  }
}
