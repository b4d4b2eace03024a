// A safe part of Markdown: paragraphs, code blocks, lists, tables, quotes, headings as bold lines. The text of a model
// becomes text nodes; nothing of it is ever read as HTML. Blocks that did not change stay the same elements, so that a
// long answer costs only its last block at each step, and a selection in it is kept.

import { inline, make } from "./inline.js";

const ITEM = /^(\s*)([-*+]|\d+[.)])\s+/;
const HEADING = /^#{1,6}\s+/;
const FENCE = /^\s*(`{3,}|~{3,})/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const ROW = /^\s*\|.*\|\s*$/;
const QUOTE = /^\s*>\s?/;

function paragraph(lines) {
  const element = make("p");
  lines.forEach((line, index) => element.append(...(index ? [make("br")] : []), ...inline(line)));
  return element;
}

const depth = (line) => ITEM.exec(line)[1].length;
const numbered = (line) => /^\s*\d/.test(line);

/** A list; what is indented deeper than its first item is a list in the item before. */
function list(lines) {
  const first = Number.parseInt(lines[0], 10);
  const element = make(numbered(lines[0]) ? "ol" : "ul");
  if (first > 1) element.start = first;
  for (let at = 0, end = 0; at < lines.length; at = end) {
    for (end = at + 1; end < lines.length && depth(lines[end]) > depth(lines[0]); ) end += 1;
    const below = lines.slice(at + 1, end);
    element.append(make("li", ...inline(lines[at].replace(ITEM, "")), ...(below.length ? [list(below)] : [])));
  }
  return element;
}

const cells = (row) => row.trim().slice(1, -1).split("|").map((cell) => cell.trim());

function table(lines) {
  const ruled = lines.length > 1 && cells(lines[1]).every((cell) => /^:?-+:?$/.test(cell));
  if (!ruled) return paragraph(lines);
  const row = (line, name) => make("tr", ...cells(line).map((cell) => make(name, ...inline(cell))));
  const body = make("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  return make("div", make("table", make("thead", row(lines[0], "th")), body));
}

const KINDS = [["blank", /^\s*$/], ["heading", HEADING], ["rule", RULE], ["quote", QUOTE], ["table", ROW], ["list", ITEM]];

/** How a line is laid out; lines of one kind in a row belong together. */
const kind = (line) => KINDS.find(([, pattern]) => pattern.test(line))?.[0] ?? "text";

const LAYOUT = {
  heading: (lines) => make("p", make("strong", ...inline(lines[0].replace(HEADING, "")))),
  rule: () => make("hr"),
  quote: (lines) => make("blockquote", ...lines.map((line) => paragraph([line.replace(QUOTE, "")]))),
  list,
  table,
  text: paragraph,
  code: (lines) => make("pre", make("code", lines.slice(1).join("\n"))),
};
const ALONE = new Set(["heading", "rule"]);

/** Whether a line goes on with the block before it: one list holds points or numbers, and deeper ones of both. */
function joins(open, line, now) {
  if (open.kind !== now || ALONE.has(now)) return false;
  return now !== "list" || numbered(line) === numbered(open.lines[0]) || depth(line) > depth(open.lines[0]);
}

function blocks(text) {
  const found = [{ kind: "blank", lines: [] }];
  let fence = "";
  for (const line of text.split("\n")) {
    const open = found.at(-1);
    const mark = FENCE.exec(line)?.[1] ?? "";
    const now = mark ? "code" : kind(line);
    if (fence && mark.startsWith(fence) && line.trim() === mark) {
      fence = "";
      found.push({ kind: "blank", lines: [] });
    } else if (fence || (!mark && joins(open, line, now))) {
      open.lines.push(line);
    } else {
      fence = mark;
      found.push({ kind: now, lines: [line] });
    }
  }
  return found.filter((block) => block.kind !== "blank");
}

/** Show `text` inside `element`. */
export function render(element, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const source = block.kind + block.lines.join("\n");
    const there = element.children[index];
    if (there?.source === source) return;
    const fresh = Object.assign(LAYOUT[block.kind](block.lines), { source });
    if (there) there.replaceWith(fresh);
    else element.append(fresh);
  });
  while (element.children.length > wanted.length) element.lastElementChild.remove();
}
