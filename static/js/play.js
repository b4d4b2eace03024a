// The playground: a conversation with one deployment.

import { Answer, copyOf } from "./answer.js";
import { complete, Refused } from "./stream.js";

const form = document.querySelector("[data-composer]");
const settings = document.querySelector("[data-settings]");
const chat = document.querySelector("[data-chat]");
const empty = document.querySelector("[data-empty]");
const token = JSON.parse(document.getElementById("token").textContent);
const message = form.elements.message;
let turns = [];
let running = null;

function request(conversation) {
  const { model, system, temperature, max_tokens } = settings.elements;
  const told = system.value.trim() ? [{ role: "system", content: system.value.trim() }] : [];
  return {
    model: model.value,
    messages: [...told, ...conversation],
    temperature: Number(temperature.value),
    max_tokens: Number(max_tokens.value),
  };
}

async function ask(text) {
  empty?.remove();
  copyOf("turn-prompt", chat).querySelector("[data-text]").textContent = text;
  const conversation = turns; // "New chat" may begin another one meanwhile
  conversation.push({ role: "user", content: text });
  const sent = request(conversation);
  const answer = new Answer(sent.model, chat);
  running = new AbortController();
  busy(true);
  try {
    await complete(sent, token, running.signal, (grown, figures) => answer.grow(grown, figures));
    answer.end("done");
  } catch (error) {
    if (error.name === "AbortError") answer.end("stopped");
    else answer.end("failed", error instanceof Refused ? error.message : form.dataset.offline);
  }
  running = null;
  busy(false);
  // A question without an answer leaves the conversation, so that the next one is not sent after it.
  if (answer.now.text) conversation.push({ role: "assistant", content: answer.now.text });
  else conversation.pop();
}

function busy(on) {
  form.querySelector("[data-send]").hidden = on;
  form.querySelector("[data-stop]").hidden = !on;
  chat.setAttribute("aria-busy", on);
  message.focus({ preventScroll: true });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value.trim();
  if (!text || running || !settings.reportValidity()) return;
  message.value = "";
  ask(text);
});

message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

form.querySelector("[data-stop]").onclick = () => running?.abort();

document.querySelector("[data-new-chat]").onclick = () => {
  running?.abort();
  turns = [];
  chat.replaceChildren(...(empty ? [empty] : []));
  message.focus();
};

for (const slider of settings.querySelectorAll("[data-slides]")) {
  const field = settings.elements[slider.dataset.slides];
  slider.oninput = () => (field.value = slider.value);
  field.oninput = () => (slider.value = field.value);
}

// The choice is in the address, so that a refreshed list keeps it, and says at once if that deployment does not answer.
document.addEventListener("change", ({ target }) => {
  if (target.form !== settings || target.name !== "model") return;
  history.replaceState(null, "", `?model=${encodeURIComponent(target.value)}`);
  window.htmx.trigger(document.getElementById("main"), "poke");
});
