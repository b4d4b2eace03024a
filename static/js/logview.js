// Draws lines of a log: colours as classes, one batch a frame, a bounded number of lines, filter, wrap and follow.

import { AnsiUp } from "../vendor/ansi_up-6.0.6/ansi_up.js";

const MOST = 20000;
const LEVELS = [["is-error", /\b(ERROR|CRITICAL|FATAL|Traceback|\w+Error:)/], ["is-warn", /\b(WARNING|WARN)\b/]];

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
  line(text) {
    return this.ansi_to_html(`${text}\x1b[0m`); // a colour ends with its line
  }
}

export class LogView {
  constructor(root) {
    const part = (name) => root.querySelector(`[data-${name}]`);
    Object.assign(this, { box: part("box"), list: part("list"), status: part("status"), download: part("download") });
    Object.assign(this, { painter: new Painter(), fresh: [], last: null, following: true, wanted: "" });
    this.button = part("follow");
    this.button.onclick = () => this.follow(!this.following);
    part("wrap").onclick = ({ currentTarget }) => {
      const on = currentTarget.getAttribute("aria-pressed") !== "true";
      currentTarget.setAttribute("aria-pressed", on);
      this.box.classList.toggle("is-unwrapped", !on);
    };
    part("filter").oninput = ({ target }) => this.filter(target.value);
    this.box.addEventListener("wheel", ({ deltaY }) => deltaY < 0 && this.follow(false), { passive: true });
    this.box.addEventListener("scroll", () => this.atEnd() && this.follow(true), { passive: true });
    this.box.addEventListener("keydown", ({ key }) => ["ArrowUp", "PageUp", "Home"].includes(key) && this.follow(false));
    this.box.addEventListener("touchmove", () => this.follow(this.atEnd()), { passive: true });
  }

  atEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 8;
  }

  follow(on) {
    this.following = on;
    this.button.setAttribute("aria-pressed", on);
    if (on) this.box.scrollTop = this.box.scrollHeight;
  }

  clear(address) {
    Object.assign(this, { fresh: [], last: null, unfinished: "" });
    this.list.replaceChildren();
    this.download.href = address;
    this.follow(true);
  }

  say(text) {
    this.status.textContent = text;
  }

  add(lines, unfinished) {
    this.unfinished = unfinished;
    for (const line of lines) this.fresh.push(line);
    if (this.fresh.length > MOST) this.fresh.splice(0, this.fresh.length - MOST);
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    this.last?.remove();
    const added = document.createDocumentFragment();
    for (const line of this.fresh.splice(0)) added.append(this.row(line));
    this.last = this.unfinished ? this.row(this.unfinished) : null;
    if (this.last) added.append(this.last);
    this.list.append(added);
    for (let extra = this.list.childElementCount - MOST; extra > 0; extra -= 1) this.list.firstElementChild.remove();
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
  }

  row(text) {
    const row = document.createElement("li");
    row.innerHTML = this.painter.line(text); // escaped by ansi_up
    row.className = LEVELS.find(([, pattern]) => pattern.test(row.textContent))?.[0] ?? "";
    row.hidden = !row.textContent.toLowerCase().includes(this.wanted);
    return row;
  }

  filter(text) {
    this.wanted = text.toLowerCase();
    for (const row of this.list.children) row.hidden = !row.textContent.toLowerCase().includes(this.wanted);
    if (this.following) this.follow(true);
  }
}
