// The code panel: exactly the request that was made, or the one that Send makes now.

import { codeOf } from "./code.js";

const panel = document.querySelector("[data-code-panel]");
const part = (name) => panel.querySelector(`[data-code-${name}]`);
let offered = []; // {model, request}: answers, or what would be sent
let chosen = "";
let next = () => [];

/** Draw again what is offered: an answer's request changes when a base model is sent a completion instead. */
export function draw() {
  const found = offered.find(({ model }) => model === chosen) ?? offered[0];
  if (!panel.open || !found) return;
  const language = panel.querySelector("[name=lang]:checked").value;
  const { text, shortened } = codeOf(language, panel.dataset.baseUrl, found.request);
  part("text").textContent = text;
  part("short").hidden = !shortened;
  part("for").hidden = offered.length < 2;
  part("for").replaceChildren(...offered.map(({ model }) => choice(model, model === found.model)));
}

function choice(name, on) {
  const label = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "code-for", value: name, checked: on });
  label.append(radio, name);
  return label;
}

/** Show the requests of answers. */
export function show(answers, open = false) {
  offered = answers;
  part("what").textContent = part("what").dataset.last;
  if (open) panel.open = true;
  draw();
  if (open) panel.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

/** Show what Send would send now. `build` gives [{model, request}]. */
export function preview(build = next) {
  next = build;
  if (!panel.open) return;
  offered = build();
  part("what").textContent = part("what").dataset.next;
  draw();
}

panel.addEventListener("toggle", () => (offered.length ? draw() : preview()));
panel.addEventListener("change", ({ target }) => {
  if (target.name === "code-for") chosen = target.value;
  draw();
});
