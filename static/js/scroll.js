// A box that stays at its end while more comes, until somebody scrolls back; at its end again it follows again.

const FRAMES = 3;

export class Scroll {
  constructor(box) {
    Object.assign(this, { box, following: true, onFollow: null });
    this.listeners = new AbortController();
    const on = (event, act) => box.addEventListener(event, act, { passive: true, signal: this.listeners.signal });
    on("wheel", ({ deltaY }) => deltaY < 0 && this.follow(false));
    on("scroll", () => this.atEnd() && this.follow(true));
    on("keydown", ({ key }) => ["ArrowUp", "PageUp", "Home"].includes(key) && this.follow(false));
    on("touchmove", () => this.follow(this.atEnd()));
  }

  stop() {
    this.listeners.abort();
    cancelAnimationFrame(this.again);
  }

  atEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 8;
  }

  follow(on) {
    if (on !== this.following) this.onFollow?.(on);
    this.following = on;
    this.settle();
  }

  /** At the end also in the next frames: blocks have their true height only once they come into sight. */
  settle(frames = FRAMES) {
    cancelAnimationFrame(this.again);
    if (!this.following) return;
    this.box.scrollTop = this.box.scrollHeight;
    if (frames) this.again = requestAnimationFrame(() => this.settle(frames - 1));
  }
}
