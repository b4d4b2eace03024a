// A box that stays at its end while more comes, until somebody scrolls back; at its end again it follows again.

export class Scroll {
  constructor(box) {
    Object.assign(this, { box, following: true, onFollow: null });
    this.listeners = new AbortController();
    const on = (event, act) => box.addEventListener(event, act, { passive: true, signal: this.listeners.signal });
    on("wheel", ({ deltaY }) => deltaY < 0 && this.follow(false));
    on("scroll", () => this.atEnd() && this.follow(true));
    on("keydown", ({ key }) => ["ArrowUp", "PageUp", "Home"].includes(key) && this.follow(false));
    on("touchmove", () => this.follow(this.atEnd()));
    // Blocks have their true height only once they come into sight, and the end moves with it.
    this.sizes = new ResizeObserver(() => this.settle());
    for (const part of [box, box.querySelector("[data-list]")]) this.sizes.observe(part);
  }

  stop() {
    this.listeners.abort();
    this.sizes.disconnect();
  }

  atEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 8;
  }

  follow(on) {
    if (on !== this.following) this.onFollow?.(on);
    this.following = on;
    this.settle();
  }

  settle() {
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
  }
}
