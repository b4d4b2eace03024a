// The figures of model servers, live: each place names whose they are (data-figures) and which (data-figure).

import { listen, newest } from "./samples.js";

const OLD = 20; // seconds after which a figure says nothing of now
const whole = (value) => value.toFixed(0);
const time = (seconds) => (seconds < 1 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(1)} s`);
const FORMS = {
  kv: (value) => `${(value * 100).toFixed(0)} %`,
  generation: (value) => value.toFixed(value < 10 ? 1 : 0),
  prompt: whole,
  ttft50: time,
  ttft95: time,
  itl50: time,
  itl95: time,
};

function draw(group) {
  const sample = newest.get(group.dataset.figures);
  const fresh = sample && Date.now() / 1000 - sample.t < OLD;
  for (const place of group.querySelectorAll("[data-figure]")) {
    const name = place.dataset.figure;
    const value = fresh ? sample[name] : null;
    const text = value == null ? "–" : (FORMS[name] ?? whole)(value);
    if (place.textContent !== text) place.textContent = text;
  }
}

const groups = () => [...document.querySelectorAll("[data-figures]")];

const redraw = () => groups().forEach(draw);

function start() {
  const names = groups().map((group) => group.dataset.figures);
  if (names.length) listen(names, redraw);
  redraw();
}

start();
setInterval(redraw, 5000);
document.addEventListener("htmx:oobAfterSwap", start);
