// The page's sentences for scripts, in the reader's language: they stand in <template id="words">. And times, and copying.

const words = document.getElementById("words")?.content;

/** A sentence, its blanks `{name}` filled in. */
export function word(name, blanks = {}) {
  const text = words?.querySelector(`[data-word="${name}"]`)?.textContent ?? name;
  return text.replace(/\{(\w+)\}/g, (whole, blank) => blanks[blank] ?? whole);
}

export function time(moment) {
  const when = new Date(moment);
  const today = when.toDateString() === new Date().toDateString();
  const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  return when.toLocaleString(document.documentElement.lang, today ? clock : { ...clock, month: "short", day: "numeric" });
}

/** Put `text` on the clipboard; `button` says that it is there. */
export async function copyText(text, button) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else { // plain HTTP on another machine: the browser offers no clipboard
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "vh" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.classList.add("is-copied");
  setTimeout(() => button.classList.remove("is-copied"), 1600);
}
