// Who uses a GPU: our deployments by their jobs, other people's processes by name. What the page knows is in #fleet-data.

import { newest } from "./samples.js";
import { word } from "./words.js";

/** The deployments whose processes, and the processes of others, that hold memory of a node's GPU: in MiB each. */
export function holdersOf(fleet, node, index) {
  const found = { ours: new Map(), others: [], ourMib: 0, otherMib: 0 };
  for (const [gpu, pid, mib, user, command, job] of newest.get(`w${node.id}`) ?? []) {
    if (gpu !== index) continue;
    const names = fleet.jobs[job];
    if (job && (names || fleet.knows(job))) {
      for (const name of names ?? [""]) found.ours.set(name, (found.ours.get(name) ?? 0) + (mib ?? 0));
      found.ourMib += mib ?? 0;
    } else {
      found.others.push({ pid, mib, user, command });
      found.otherMib += mib ?? 0;
    }
  }
  return found;
}

/** Memory in use below this is the driver's own, in MiB. */
export const IDLE = 1024;

/** Whether a deployment that was given GPUs of a node (none: it chose itself) may be on this one. */
export const takes = (gpus, index) => index === null || !gpus?.length || gpus.includes(index);

/** The deployments that may be on a GPU, by where they were placed. */
export const placedOn = (node, index) => node.serves.filter((name) => takes(node.placed[name], index));

/** MiB of a GPU that are not ours: what processes hold; all that is in use where nobody is known to hold it. */
export function othersOf(fleet, node, index, used) {
  const found = holdersOf(fleet, node, index);
  const nobody = !found.ours.size && !found.others.length && !placedOn(node, index).length;
  return nobody && used > IDLE ? used : found.otherMib;
}

const size = (mib) => (mib == null ? "–" : (mib / 1024).toFixed(1));
const short = (command) => command.split(" ").slice(0, 2).join(" ").slice(0, 32);

function link(fleet, name) {
  const address = fleet.deployments[name];
  if (!address) return Object.assign(document.createElement("span"), { textContent: name || word("ours") });
  return Object.assign(document.createElement("a"), { textContent: name, href: address });
}

function foreign({ pid, mib, user, command }) {
  const made = document.getElementById("foreign").content.firstElementChild.cloneNode(true);
  const blanks = { name: command ? short(command) : `pid ${pid}`, user: user || word("unknown") };
  made.querySelector("[data-text]").textContent = word("process", blanks);
  made.title = word("holds", { command: command || "?", user: blanks.user, pid, size: size(mib) });
  return made;
}

/** Nodes for a page: links to deployments, then other people's processes, the largest first; at most three. */
export function shown(fleet, holders, serves) {
  const names = holders.ours.size || holders.others.length ? [...holders.ours.keys()] : serves;
  const others = [...holders.others].sort((one, other) => (other.mib ?? 0) - (one.mib ?? 0));
  return [...names.map((name) => link(fleet, name)), ...others.map(foreign)].slice(0, 3);
}
