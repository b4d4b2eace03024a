// The code panel: exactly the request that was made, or the one that Send makes now.

import { codeOf } from "./code.js";

const panel = document.querySelector("[data-code-panel]");
const part = (name) => panel.querySelector(`[data-code-${name}]`);
let offered = []; // [{name, request}]
let chosen = "";
let next = () => [];

function draw() {
  if (!panel.open || !offered.length) return;
  const found = offered.find(({ name }) => name === chosen) ?? offered[0];
  const language = panel.querySelector("[name=lang]:checked").value;
  const { text, shortened } = codeOf(language, panel.dataset.baseUrl, found.request);
  part("text").textContent = text;
  part("short").hidden = !shortened;
  const names = offered.map(({ name }) => name);
  part("for").hidden = names.length < 2;
  part("for").replaceChildren(...names.map((name) => choice(name, name === found.name)));
}

function choice(name, on) {
  const label = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "code-for", value: name, checked: on });
  label.append(radio, name);
  return label;
}

/** Show requests that were made. */
export function show(requests, open = false) {
  offered = requests;
  part("what").textContent = part("what").dataset.last;
  if (open) panel.open = true;
  draw();
  if (open) panel.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

/** Show what Send would send now. `build` gives [{name, request}]. */
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
