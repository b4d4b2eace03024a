// The charts of a page. They come anew when more is known of the node, and change their colours with the theme.

import { Chart } from "./chart.js";

let charts = [];

function start() {
  charts = charts.filter((chart) => chart.figure.isConnected);
  const fresh = document.querySelectorAll("[data-chart]:not([data-started])");
  for (const figure of fresh) {
    figure.dataset.started = "";
    charts.push(new Chart(figure));
  }
}

start();
const recolour = () => charts.forEach((chart) => chart.build());
document.addEventListener("htmx:oobAfterSwap", start);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
document.addEventListener("deck:theme", recolour);
