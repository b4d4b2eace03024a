// The last hour of a node's samples, one connection a node however many charts and tiles show it.

import { connect } from "./socket.js";

const KEPT = 3600;
const nodes = new Map();

function join(node) {
  const feed = { samples: [], readers: [] };
  connect(() => `/ws/samples/${node}`, {
    message(event) {
      const last = feed.samples.at(-1)?.t ?? 0; // after a reconnect the kept hour comes again
      const fresh = JSON.parse(event.data).filter((sample) => sample.t > last);
      if (!fresh.length) return;
      feed.samples.push(...fresh);
      if (feed.samples.length > KEPT) feed.samples.splice(0, feed.samples.length - KEPT);
      feed.readers = feed.readers.filter((reader) => reader(feed.samples) !== false);
    },
  });
  return feed;
}

/** Call `reader(samples)` with all kept samples, now if there are any and whenever one is added; until it returns false. */
export function follow(node, reader) {
  if (!nodes.has(node)) nodes.set(node, join(node));
  const feed = nodes.get(node);
  feed.readers.push(reader);
  if (feed.samples.length) reader(feed.samples);
}

const GIB = 2 ** 30;
const sum = (sample, name) => sample.gpus.reduce((all, one) => all + one[name], 0);

/** What a metric's name means: its value in a sample, the top of its scale, and its unit. */
export function metric(name) {
  const [kind, index] = name.split(":");
  const gpu = (sample) => sample.gpus?.find((one) => one.i === Number(index));
  const kinds = {
    mem: { value: (s) => s.mem[0] / GIB, top: (s) => s.mem[1] / GIB, digits: 1 },
    cpu: { value: (s) => s.cpu, top: () => 100, digits: 0 },
    gpu: { value: (s) => (gpu(s) ? gpu(s).used / 1024 : null), top: (s) => (gpu(s)?.total ?? 0) / 1024, digits: 1 },
    gpus: { value: (s) => sum(s, "used") / 1024, top: (s) => sum(s, "total") / 1024, digits: 1 },
    util: { value: (s) => gpu(s)?.util ?? null, top: () => 100, digits: 0 },
  };
  return { ...kinds[kind], gpu };
}
