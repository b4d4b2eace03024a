// The small line of a tile.

const MINUTES = 60;

/** The load of the last hour, a point a minute. Minutes without one are gaps. */
export class Line {
  constructor() {
    this.minutes = new Map();
    this.now = [0, 0, 0]; // the minute at hand: which, sum, count
  }

  /** What the server kept. */
  fill(times, values) {
    times.forEach((at, place) => values[place] != null && this.minutes.set(at, values[place]));
  }

  add(at, value) {
    const minute = Math.floor(at / 60) * 60;
    if (minute !== this.now[0]) this.now = [minute, 0, 0];
    if (value == null) return;
    this.now = [minute, this.now[1] + value, this.now[2] + 1];
    this.minutes.set(minute, this.now[1] / this.now[2]);
  }

  path(at) {
    const end = Math.floor(at / 60) * 60;
    let path = "";
    let before = null;
    for (let minute = end - (MINUTES - 1) * 60; minute <= end; minute += 60) {
      const value = this.minutes.get(minute);
      if (value != null) {
        const x = 300 - ((end - minute) / 60) * (300 / (MINUTES - 1));
        path += `${before === minute - 60 ? "L" : "M"}${x.toFixed(1)} ${(100 - value).toFixed(1)}`;
        if (before !== minute - 60) path += "h0.1"; // a single minute is a dot
        before = minute;
      }
    }
    for (const minute of this.minutes.keys()) if (minute < end - MINUTES * 60) this.minutes.delete(minute);
    return path;
  }
}
