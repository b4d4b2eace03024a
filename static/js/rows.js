// Rows of a log: the time, which is the row's link, whose line it is where several logs share a box, and the text.

import { level, paint, plain } from "./painter.js";

const clock = new Intl.DateTimeFormat(document.documentElement.lang || undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

function row({ job, offset, time, text }, name) {
  const of = name ? `<i class="of n${name(job).number}">${paint(name(job).text)}</i>` : "";
  const body = `${of}${paint(text)}</li>`;
  const kind = level(plain(text));
  if (offset === null) return `<li class="${kind}">${body}`;
  const id = `log-${job}-${offset}`;
  return `<li class="${kind}" id="${id}"><a class="at" href="#${id}" tabindex="-1">${time ? clock.format(time) : "·"}</a>${body}`;
}

/** A fragment with a row for each line ({job, offset, time, text}); rows without the text `wanted` are hidden. */
export function rows(lines, { name, wanted }) {
  const made = document.createElement("template");
  made.innerHTML = lines.map((line) => row(line, name)).join(""); // painted text is escaped
  if (wanted) sift(made.content.children, wanted);
  return made.content;
}

/** Hide the rows without the text. */
export function sift(rows, wanted) {
  for (const row of rows) {
    const hide = !row.textContent.toLowerCase().includes(wanted);
    if (row.hidden !== hide) row.hidden = hide;
  }
}
