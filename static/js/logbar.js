// What is above a log: follow, wrap, filter, level, the first error, earlier lines, and the links of lines.

export class LogBar {
  constructor(root, view) {
    this.part = (name) => root.querySelector(`[data-${name}]`);
    Object.assign(this, { view, panes: () => view.panes });
    const pressed = (name) => this.part(name).getAttribute("aria-pressed") === "true";
    this.part("follow").onclick = () => {
      if (view.apart()) view.whole();
      else this.panes().forEach(({ scroll }) => scroll.follow(!pressed("follow")));
    };
    this.part("wrap").onclick = () => {
      this.part("panes").classList.toggle("is-unwrapped", pressed("wrap"));
      this.press("wrap", !pressed("wrap"));
    };
    this.part("filter").oninput = ({ target }) => this.panes().forEach((pane) => pane.filter(target.value));
    this.part("level").onchange = () => this.levels();
    this.part("error").onclick = () => this.firstError();
    this.part("earlier").onclick = () => this.earlier();
    this.part("later").onclick = () => this.later();
    root.addEventListener("click", (event) => event.target.closest("a.at") && this.link(event));
    setInterval(() => this.countErrors(), 500);
  }

  press(name, on) {
    this.part(name).setAttribute("aria-pressed", on);
  }

  levels() {
    this.part("panes").dataset.only = this.part("level").value;
    this.panes().forEach(({ scroll }) => scroll.settle());
  }

  countErrors() {
    const count = this.part("panes").getElementsByClassName("is-error").length;
    this.part("error").hidden = count === 0;
    this.part("error").querySelector("[data-count]").textContent = count;
  }

  firstError() {
    for (const pane of this.panes()) {
      const row = pane.list.querySelector("li.is-error:not([hidden])");
      if (row) return pane.reveal(row);
    }
    return undefined;
  }

  earlier() {
    return this.read(this.part("earlier"), async (follower) => {
      this.panes()[0].prepend(follower.job, await follower.earlier());
      return !follower.first;
    });
  }

  later() {
    return this.read(this.part("later"), async (follower) => {
      await follower.later();
      return !follower.apart;
    });
  }

  /** A piece that a button asks for, which goes once `piece` says that there is no more. */
  async read(button, piece) {
    button.disabled = true;
    try {
      button.hidden = await piece(this.view.followers[0]);
    } catch {
      this.view.say(this.view.text.unread);
    } finally {
      button.disabled = false;
    }
  }

  /** The link of a line is in the address from now on, and in the clipboard where there is one. */
  link(event) {
    event.preventDefault();
    const link = event.target.closest("a.at");
    history.replaceState(null, "", link.getAttribute("href"));
    navigator.clipboard?.writeText(location.href).then(() => this.view.say(this.view.text.copied));
    this.panes().find(({ box }) => box.contains(link)).reveal(link.parentElement);
  }
}
