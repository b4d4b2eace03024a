// Memory bars of a list of nodes, live.

import { listen, metric, newest } from "./samples.js";

const size = (gib) => gib.toFixed(gib >= 99.95 ? 0 : 1);

function draw(place) {
  const sample = newest.get(`s${place.dataset.meter}`);
  if (!sample) return;
  const { value, top } = metric(place.dataset.metric);
  const [used, total] = [value(sample), top(sample)];
  if (used == null || !total) return;
  place.querySelector("[data-fill]").setAttribute("width", `${((100 * used) / total).toFixed(1)}%`);
  place.querySelector("[data-used]").textContent = size(used);
  place.querySelector("[data-total]").textContent = size(total);
}

const places = () => [...document.querySelectorAll("[data-meter]")];
if (places().length) {
  listen(null, (changed) => {
    for (const place of places()) if (changed.has(`s${place.dataset.meter}`)) draw(place);
  });
  document.addEventListener("htmx:oobAfterSwap", () => places().forEach(draw));
}
