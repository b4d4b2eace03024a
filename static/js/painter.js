// A line of a log as markup: colours as classes, everything else escaped.

import { AnsiUp } from "../vendor/ansi_up-6.0.6/ansi_up.js";

/** ansi_up with classes only: the page's policy allows no style attributes. Links are shown as text. */
class Painter extends AnsiUp {
  transform_to_html(part) {
    const names = ["bold", "faint", "italic", "underline"].filter((name) => part[name]).map((name) => `a-${name}`);
    for (const [place, colour] of [["fg", part.fg], ["bg", part.bg]]) {
      if (colour && colour.class_name !== "truecolor") names.push(`${colour.class_name}-${place}`);
    }
    const text = this.escape_txt_for_html(part.text);
    return names.length ? `<span class="${names.join(" ")}">${text}</span>` : text;
  }
  process_hyperlink(part) {
    return this.escape_txt_for_html(part.text);
  }
}

const painter = new Painter();
const COLOUR = /\x1b\[[0-9;]*m/g;
const NEEDS_CARE = /[\x1b&<>"]/;

/** Markup of the line; a colour ends with it. */
export function paint(text) {
  return NEEDS_CARE.test(text) ? painter.ansi_to_html(`${text}\x1b[0m`) : text;
}

const LEVELS = [["is-error", /\b(ERROR|CRITICAL|FATAL|Traceback|\w+Error:)/], ["is-warn", /\b(WARNING|WARN)\b/]];

/** "is-error", "is-warn" or "". */
export function level(text) {
  return LEVELS.find(([, pattern]) => pattern.test(text))?.[0] ?? "";
}

/** The line without its colour codes. */
export function plain(text) {
  return text.includes("\x1b") ? text.replace(COLOUR, "") : text;
}
