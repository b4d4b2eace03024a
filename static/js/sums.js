// The sums at the head of the overview.

import { holdersOf } from "./holders.js";
import { totals } from "./hosts.js";
import { newest } from "./samples.js";
import { word } from "./words.js";

const OLD = 60; // seconds after which a server's figures say nothing of now
const short = (value) => value.toFixed(value >= 100 ? 0 : 1);

function put(name, text) {
  const found = document.querySelector(`[data-sum="${name}"]`);
  if (found && found.textContent !== text) found.textContent = text;
}

export function sum(known) {
  let [used, total, busy, others] = [0, 0, 0, 0];
  for (const node of known.nodes) {
    const now = totals(node);
    used += now.used ?? 0;
    total += now.total ?? 0;
    for (const [index] of node.gpus) {
      const held = holdersOf(known, node, index);
      busy += held.ours.size > 0;
      others += held.others.length > 0;
    }
  }
  put("used", short(used));
  put("total", short(total));
  put("busy", String(busy));
  put("others", others ? word("others", { n: others }) : "");
  const fresh = Date.now() / 1000 - OLD;
  const servers = [...newest].filter(([name, sample]) => name[0] === "e" && sample.t > fresh).map(([, sample]) => sample);
  for (const [name, field] of [["generated", "generation"], ["running", "running"], ["waiting", "waiting"]]) {
    put(name, servers.reduce((all, sample) => all + (sample[field] ?? 0), 0).toFixed(0));
  }
}
