// Pokes say which row changed; whatever on the page names that row in data-live is fetched again. A poke may be lost,
// so after a reconnect everything is fetched.

import { connect } from "./socket.js";

const AT_MOST_EVERY = 1000;
const GATHER = 150; // several rows change together: one request for all of them
const mark = document.getElementById("live");
const due = new Map();

function concerned(element, subject) {
  const [model] = subject.split(":");
  return element.dataset.live.split(" ").some((name) => name === subject || name === model);
}

function refresh(element) {
  if (due.has(element)) return;
  const wait = Math.max(GATHER, (element.refreshedAt ?? 0) + AT_MOST_EVERY - Date.now());
  due.set(element, setTimeout(() => {
    due.delete(element);
    element.refreshedAt = Date.now();
    if (element.isConnected) window.htmx.trigger(element, "poke");
  }, wait));
}

function poke(subject) {
  for (const element of document.querySelectorAll("[data-live]")) {
    if (subject === null || concerned(element, subject)) refresh(element);
  }
}

function show(word, lost) {
  mark.textContent = mark.dataset[word];
  mark.classList.toggle("is-lost", lost);
  mark.classList.remove("is-waiting");
}

if (mark) {
  connect(() => "/ws/pokes", {
    open(again) {
      show("on", false);
      if (again) poke(null);
    },
    message: (event) => poke(JSON.parse(event.data).changed),
    lost: () => show("off", true),
  });
}

// What the reader had unfolded stays unfolded when its part of the page is drawn anew.
let unfolded = new Map();
document.addEventListener("htmx:oobBeforeSwap", ({ target, detail }) => {
  const shape = detail.fragment.querySelector("[data-shape]")?.dataset.shape;
  if (shape && target.dataset.shape === shape) detail.shouldSwap = false; // charts live on by their samples
  for (const fold of target.querySelectorAll("details[data-keep]")) unfolded.set(fold.dataset.keep, fold.open);
});
document.addEventListener("htmx:oobAfterSwap", () => {
  for (const fold of document.querySelectorAll("details[data-keep]")) {
    fold.open = unfolded.get(fold.dataset.keep) ?? fold.open;
  }
  unfolded = new Map();
});
