// A small, safe part of Markdown: paragraphs, code blocks, lists, headings as bold lines, bold and code. The text of a
// model becomes text nodes; nothing of it is ever read as HTML.

const INLINE = /(`+)([^`]+?)\1|\*\*([^*]+?)\*\*/g;

function make(name, ...children) {
  const element = document.createElement(name);
  element.append(...children);
  return element;
}

function inline(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    parts.push(text.slice(from, found.index), found[2] ? make("code", found[2]) : make("strong", found[3]));
    from = found.index + found[0].length;
  }
  return [...parts, text.slice(from)].filter((part) => part !== "");
}

function paragraph(lines) {
  const element = make("p");
  lines.forEach((line, index) => element.append(...(index ? [make("br")] : []), ...inline(line)));
  return element;
}

function list(lines) {
  const element = make(/^\s*\d/.test(lines[0]) ? "ol" : "ul");
  element.append(...lines.map((line) => make("li", ...inline(line.replace(ITEM, "")))));
  return element;
}

const ITEM = /^\s*([-*+]|\d+[.)])\s+/;
const HEADING = /^#{1,6}\s+/;
const FENCE = /^\s*```/;

/** How a line is laid out; lines of one kind in a row belong together. */
function kind(line) {
  if (!line.trim()) return "blank";
  if (HEADING.test(line)) return "heading";
  return ITEM.test(line) ? (/^\s*\d/.test(line) ? "numbers" : "points") : "text";
}

const LAYOUT = {
  blank: () => [],
  heading: (lines) => lines.map((line) => make("p", make("strong", line.replace(HEADING, "")))),
  numbers: (lines) => [list(lines)],
  points: (lines) => [list(lines)],
  text: (lines) => [paragraph(lines)],
};

function* blocks(text) {
  let open = null; // lines of a code block that is not closed yet
  let group = [];
  const flush = () => (group.length ? LAYOUT[kind(group[0])](group.splice(0)) : []);
  for (const line of text.split("\n")) {
    if (FENCE.test(line)) {
      yield* flush();
      if (open) yield make("pre", make("code", open.join("\n")));
      open = open ? null : [];
    } else if (open) {
      open.push(line);
    } else {
      if (group.length && kind(group[0]) !== kind(line)) yield* flush();
      group.push(line);
    }
  }
  yield* flush();
  if (open) yield make("pre", make("code", open.join("\n")));
}

/** Show `text` inside `element`. */
export function render(element, text) {
  element.replaceChildren(...blocks(text));
}
