// The deployments that are asked. The server draws them; the address names them, so that a page drawn anew after a poke
// (states change) keeps what was chosen.

import { settings } from "./settings.js";
import { word } from "./words.js";

const remembered = ({ name, server }) => `quarterdeck.base.${name}@${server}`;

/** What is asked now: name, the job of its server, whether it answers. */
export function columns() {
  return [...document.querySelectorAll("[data-column]")].map((element) => {
    const { column: name, server, serves, untemplated } = element.dataset;
    return { name, server, serves: serves !== undefined, base: untemplated !== undefined, element };
  });
}

/** chat, or completion for a base model: one that is known to have no chat template. */
export function modeOf(column) {
  const wanted = settings().mode;
  if (wanted !== "auto") return wanted;
  return column.base || localStorage.getItem(remembered(column)) ? "completion" : "chat";
}

/** From now on this start of the deployment is sent completions. */
export function rememberBase(column) {
  localStorage.setItem(remembered(column), "1");
  tell();
}

/** Change the address: `names` of deployments, the `conversation` that is open (null: none). */
export function address({ names = null, conversation = undefined }) {
  const query = new URLSearchParams(location.search);
  if (names) {
    query.delete("model");
    for (const name of names) query.append("model", name);
  }
  if (conversation === null) query.delete("conversation");
  else if (conversation !== undefined) query.set("conversation", conversation);
  history.replaceState(null, "", `?${query}`);
}

export function choose(names) {
  address({ names });
  window.htmx.trigger(document.getElementById("main"), "poke");
}

/** Draw what depends on columns and settings: each one's mode, and to whom Send sends. */
export function tell() {
  const all = columns();
  for (const column of all) {
    const tag = column.element.querySelector("[data-mode-tag]");
    tag.textContent = word(modeOf(column));
    tag.hidden = false;
  }
  const hint = document.querySelector("[data-sent-to]");
  const names = new Intl.ListFormat(document.documentElement.lang).format(all.map((column) => column.name));
  const { one, many, none } = hint.dataset;
  hint.textContent = (!answering() ? none : all.length > 1 ? many : one).replace(/\{names?\}/, names);
  for (const button of document.querySelectorAll("[data-send], [data-sample]")) button.disabled = !answering();
}

/** Whether any of them can answer now. */
export const answering = () => columns().some((column) => column.serves);

const names = () => columns().map((column) => column.name);

document.addEventListener("change", ({ target }) => {
  if (!target.matches("[data-pick]")) return;
  const own = target.closest("[data-column]").dataset.column;
  choose(names().map((name) => (name === own ? target.value : name)));
});

document.addEventListener("click", ({ target }) => {
  const add = target.closest("[data-add-column]");
  const remove = target.closest("[data-remove-column]");
  if (add) choose([...names(), add.dataset.addColumn]);
  if (remove) choose(names().filter((name) => name !== remove.closest("[data-column]").dataset.column));
});
