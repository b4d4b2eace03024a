// Times that go on: the server says how long ago something was (data-ago, seconds), and each second this counts on from
// when the text came. A part of the page that is drawn anew brings the server's count again.

const told = document.getElementById("lengths")?.dataset;
const began = new WeakMap(); // element → when it was so on this page's own clock

/** A number of seconds in its two largest units, in the words of the filter `duration`. */
export function duration(seconds, words = told) {
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(seconds / unit));
  const text = days ? words.days : hours ? words.hours : minutes ? words.minutes : words.seconds;
  const parts = { d: days, h: hours % 24, m: minutes % 60, s: seconds % 60 };
  return text.replace(/%\((\w)\)d/g, (blank, unit) => parts[unit]);
}

function count() {
  const now = performance.now();
  for (const element of document.querySelectorAll("[data-ago]")) {
    if (!began.has(element)) began.set(element, now - 1000 * Number(element.dataset.ago));
    const text = duration(Math.round((now - began.get(element)) / 1000));
    if (element.textContent !== text) element.textContent = text;
  }
}

if (told) {
  count();
  setInterval(count, 1000);
  document.addEventListener("htmx:oobAfterSwap", count);
}
