// The playground: the composer, and what the page's buttons do.

import { Chat } from "./chat.js";
import { address, answering, columns, modeOf, tell } from "./columns.js";
import { choose } from "./conversations.js";
import { preview } from "./panel.js";
import { Pictures } from "./pictures.js";
import { requestFor } from "./request.js";
import { mark, openSaved } from "./saved.js";
import { settings, usable } from "./settings.js";

const form = document.querySelector("[data-composer]");
const message = form.elements.message;
const button = (name) => document.querySelector(`[data-${name}]`);
const pictures = new Pictures(form, (name) => say(form.dataset[name]));
let editing = null;

function say(sentence = "") {
  form.querySelector("[data-said]").textContent = sentence;
}

const chat = new Chat(button("chat"), form.dataset, {
  edit,
  unsaved: (error) => say(`${form.dataset.unsaved} ${error.message}`),
  busy(running) {
    button("send").hidden = running > 0;
    button("stop").hidden = running === 0;
    button("run-again").hidden = running > 0 || !button("chat").querySelector(".turn");
    if (!running) mark(chat);
  },
});

function edit(turn) {
  editing?.section.classList.remove("is-edited");
  editing = turn;
  turn?.section.classList.add("is-edited");
  button("cancel-edit").hidden = !turn;
  say(turn ? form.dataset.editing : "");
  message.value = turn?.prompt.text ?? "";
  pictures.put(turn?.prompt.images ?? []);
  message.focus();
}

function write(text) {
  message.value = text;
  message.focus();
}

function send() {
  const prompt = { text: message.value.trim(), images: pictures.urls };
  if ((!prompt.text && !prompt.images.length) || chat.running.size || !answering() || !usable()) return;
  const instead = editing;
  edit(null);
  say(instead ? form.dataset.branched : "");
  chat.send(prompt, instead);
}

function open(id) {
  edit(null);
  return openSaved(chat, id).catch((error) => say(error.message));
}

function begin() {
  chat.clear(), tell(); // the samples are back
  address({ conversation: null });
  edit(null);
}

/** What Send would send now, to each deployment. */
function next() {
  const prompt = { text: message.value.trim(), images: pictures.urls };
  const turn = { number: editing?.number ?? chat.turns.length, prompt };
  return columns().map((column) => ({ model: column.name, request: chat.build(turn, column)(modeOf(column)) }));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && editing) edit(null);
  else if (event.key === "Escape") chat.stop();
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
form.addEventListener("input", () => preview(next));
document.addEventListener("deck:settings", () => (tell(), preview(next)));
document.addEventListener("htmx:oobAfterSwap", () => (tell(), mark(chat)));
document.addEventListener("click", ({ target }) => target.closest("[data-sample]") && write(target.closest("[data-sample]").textContent));
button("stop").onclick = () => chat.stop();
button("new-chat").onclick = begin;
button("cancel-edit").onclick = () => edit(null);
button("run-again").onclick = () => chat.again();
button("list-conversations").onclick = () => choose(open, (id) => id === chat.record.id && begin());

tell();
preview(next);
const kept = new URLSearchParams(location.search).get("conversation");
if (kept) open(kept);
