// What a chart is drawn from.

const GAPS = 2.6; // a gap is longer than so many points

/** Times and values for uPlot; where samples are missing, a value is. */
export function columns(samples, value, step) {
  const [times, values] = [[], []];
  const longest = Math.max(5, GAPS * step);
  for (const sample of samples) {
    if (times.length && sample.t - times.at(-1) > longest) {
      times.push(times.at(-1) + 1);
      values.push(null);
    }
    times.push(sample.t);
    values.push(value(sample) ?? null);
  }
  return [times, values];
}

/** GiB as the server writes them (the filter `gib`). */
export const size = (gib) => gib.toFixed(gib >= 99.95 ? 0 : 1);

/** A round number at or above the largest value. */
export function roof(values) {
  const most = values.reduce((high, value) => Math.max(high, value ?? 0), 0);
  const unit = 10 ** Math.floor(Math.log10(most || 1));
  return [1, 2, 5, 10].map((times) => times * unit).find((top) => top >= most) ?? 1;
}
