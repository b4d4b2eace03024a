// The list of kept conversations: open one, delete one.

import { copyOf } from "./answer.js";
import { call } from "./record.js";
import { time, word } from "./words.js";

const dialog = document.getElementById("conversations");
const list = dialog.querySelector("[data-conversations]");
const failed = dialog.querySelector("[data-list-error]");

function tell(error) {
  failed.textContent = error?.message ?? "";
  failed.hidden = !error;
}

function row(one, open, gone) {
  const item = copyOf("conversation", list);
  const prompts = one.prompts === 1 ? word("one-prompt") : word("prompts", { n: one.prompts });
  const link = item.querySelector("[data-open-conversation]");
  item.querySelector("[data-title]").textContent = one.title;
  item.querySelector("[data-about]").textContent = [time(one.changed_at), prompts, one.models.join(", ")].filter(Boolean).join(" · ");
  link.href = `?conversation=${one.id}`;
  link.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab
    event.preventDefault();
    dialog.close();
    open(one.id);
  };
  item.querySelector("[data-forget]").onclick = async () => {
    try {
      await call(`${one.id}/`, "DELETE");
    } catch (error) {
      return tell(error);
    }
    item.remove();
    if (!list.children.length) nobody();
    return gone(one.id);
  };
}

function nobody() {
  list.append(Object.assign(document.createElement("li"), { className: "panel-body faint", textContent: word("none") }));
}

/** Show the list; `open(id)` and `gone(id)` are called for what is chosen or deleted. */
export async function choose(open, gone) {
  dialog.showModal();
  try {
    const { conversations } = await call("");
    list.replaceChildren();
    for (const one of conversations) row(one, open, gone);
    if (!conversations.length) nobody();
    tell(null);
  } catch (error) {
    tell(error);
  }
}
