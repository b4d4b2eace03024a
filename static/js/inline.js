// What a line of Markdown may hold: code, bold, italic, struck text and links. Builds nodes, never HTML.

const CODE = "(?<!`)(?<tick>`+)(?!`)(?<code>.+?)(?<!`)\\k<tick>(?!`)";
const STRONG = "\\*\\*(?<strong>\\S(?:.*?\\S)?)\\*\\*";
const EM = "(?<![\\w*])[*](?<em>[^*\\s](?:[^*]*[^*\\s])?)[*](?![\\w*])";
const STRUCK = "~~(?<struck>[^~]+)~~";
const LINK = "\\[(?<label>[^\\]\\n]+)\\]\\((?<url>https?:\\/\\/[^\\s()]+(?:\\([^\\s()]*\\)[^\\s()]*)*)\\)";
const BARE = "(?<bare>https?:\\/\\/[^\\s<>()\\[\\]，。、；！？）]+[^\\s<>()\\[\\].,;:!?，。、；！？）'\"])";
const LONGEST = 20_000;
const INLINE = new RegExp([CODE, STRONG, EM, STRUCK, LINK, BARE].join("|"), "g");

export function make(name, ...children) {
  const element = document.createElement(name);
  element.append(...children);
  return element;
}

function link(label, url) {
  const element = make("a", label);
  return Object.assign(element, { href: url, rel: "noopener noreferrer nofollow", target: "_blank" });
}

function node({ code, strong, em, struck, label, url, bare }) {
  if (code !== undefined) return make("code", code);
  if (strong !== undefined) return make("strong", ...inline(strong));
  if (em !== undefined) return make("em", ...inline(em));
  if (struck !== undefined) return make("s", ...inline(struck));
  return bare ? link(bare, bare) : link(label, url);
}

/** The nodes and texts of one line; a monstrous line stays text, so that it cannot stop the page. */
export function inline(text) {
  if (text.length > LONGEST) return [text];
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    parts.push(text.slice(from, found.index), node(found.groups));
    from = found.index + found[0].length;
  }
  return [...parts, text.slice(from)].filter((part) => part !== "");
}
