// What is measured: the newest over one socket for the whole page, the past by request.

import { connect } from "./socket.js";

export const newest = new Map(); // "s3" → the newest sample of node 3, "w3" → who holds its GPUs, "e5" → a server's
const readers = new Set();
const wanted = new Set();
let everything = false;
let socket = null;
let due = 0;

function receive(message) {
  const changed = new Set();
  for (const kind of ["s", "w", "e", "r"]) {
    for (const [number, value] of Object.entries(message[kind])) {
      newest.set(kind + number, value);
      changed.add(kind + number);
    }
  }
  for (const reader of readers) if (reader(changed, message.skipped) === false) readers.delete(reader);
}

function open() {
  due = 0;
  if (socket) return socket.again();
  socket = connect(() => `/ws/telemetry${everything ? "" : `?of=${[...wanted].join(",")}`}`, {
    message: ({ data }) => receive(JSON.parse(data)),
    open: (again) => again && readers.forEach((reader) => reader(new Set(), 1)), // what came meanwhile was not seen
    lost: () => document.dispatchEvent(new Event("deck:stale")),
  });
  return socket;
}

/** Call `reader(changed names, how many were skipped)` on news of these names, or of everything; until it returns false. */
export function listen(names, reader) {
  readers.add(reader);
  const before = everything ? Infinity : wanted.size;
  if (names === null) everything = true;
  else for (const name of names) wanted.add(name);
  if (!everything && wanted.size === before) return;
  if (before !== Infinity) due ||= setTimeout(open, 0); // one socket, whatever else on the page asks in this turn
}

/** The samples of a source ("node:3") over a span, and the seconds that each stands for. Rejects when there are none. */
export async function past(source, span) {
  const answer = await fetch(`/telemetry/${source.replace(":", "/")}/?span=${span}`, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

/** The name in `newest` of a source's newest sample. */
export const nameOf = (source) => source.replace("node:", "s").replace("deployment:", "e").replace("replica:", "r");

const GIB = 2 ** 30;
const [USED, TOTAL, LOAD, TEMPERATURE, POWER] = [1, 2, 3, 4, 5];
export const GPU = { USED, TOTAL, LOAD, TEMPERATURE, POWER };

/** The row of a GPU in a sample. */
export const gpuOf = (sample, index) => sample.gpus?.find((row) => row[0] === index);

const share = (value, unit) => (value == null ? null : value / unit);
const sum = (sample, column) => sample.gpus.reduce((all, row) => all + (row[column] ?? 0), 0);
const field = (name, digits, scale = 1) => ({ value: (s) => share(s[name], 1 / scale), top: () => null, digits });

/** What a metric's name means: its value in a sample, the top of its scale (null: as high as it gets), its digits. */
export function metric(name) {
  const [kind, at] = name.split(":");
  const row = (sample) => gpuOf(sample, Number(at));
  const kinds = {
    mem: { value: (s) => share(s.mem[0], GIB), top: (s) => share(s.mem[1], GIB), digits: 1 },
    disk: { value: (s) => share(s.disk[0], GIB), top: (s) => share(s.disk[1], GIB), digits: 1 },
    cpu: { value: (s) => s.cpu, top: () => 100, digits: 0 },
    gpu: { value: (s) => share(row(s)?.[USED], 1024), top: (s) => share(row(s)?.[TOTAL] ?? 0, 1024), digits: 1 },
    gpus: { value: (s) => (s.gpus.length ? sum(s, USED) / 1024 : null), top: (s) => sum(s, TOTAL) / 1024, digits: 1 },
    util: { value: (s) => row(s)?.[LOAD] ?? null, top: () => 100, digits: 0 },
    utils: { value: (s) => (s.gpus.length ? sum(s, LOAD) / s.gpus.length : null), top: () => 100, digits: 0 },
    power: { value: (s) => (s.gpus.length ? sum(s, POWER) : null), top: () => null, digits: 0 },
    kv: { value: (s) => share(s.kv, 0.01), top: () => 100, digits: 0 },
    ms: field(at, 0, 1000),
    number: field(at, 0),
    rate: field(at, 1),
  };
  return kinds[kind];
}
