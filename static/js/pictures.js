// Pictures of a prompt, as data URLs. They are drawn on canvases: the page's policy allows images of its own only.

import { copyOf } from "./answer.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST_BYTES = 5 * 1024 * 1024; // together
const MOST = 8;
const TALL = 160; // pixels

function bytesOf(url) {
  const text = atob(url.slice(url.indexOf(",") + 1));
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

async function paint(canvas, url) {
  const type = url.slice(5, url.indexOf(";"));
  const bitmap = await createImageBitmap(new Blob([bytesOf(url)], { type }));
  const scale = Math.min(1, TALL / bitmap.height, (2 * TALL) / bitmap.width);
  canvas.width = Math.max(1, bitmap.width * scale);
  canvas.height = Math.max(1, bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

/** Draw pictures into `box`; with `drop(index)` each can be removed. */
export function drawPictures(box, urls, drop = null) {
  box.replaceChildren();
  box.hidden = !urls.length;
  urls.forEach((url, index) => {
    const picture = copyOf("picture", box);
    const button = picture.querySelector("[data-drop]");
    if (drop) button.onclick = () => drop(index);
    else button.remove();
    paint(picture.querySelector("canvas"), url).catch(() => picture.classList.add("is-broken"));
  });
}

function urlOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** The pictures of the composer: pasted, dropped or chosen. `say(name)` tells why one was not taken. */
export class Pictures {
  constructor(form, say) {
    Object.assign(this, { urls: [], bytes: [], say, box: form.querySelector("[data-pictures]"), form });
    const field = form.querySelector("[data-attach]");
    field.onchange = () => this.add([...field.files]).then(() => (field.value = ""));
    form.addEventListener("paste", (event) => this.take(event, event.clipboardData));
    form.addEventListener("dragover", (event) => event.preventDefault());
    form.addEventListener("drop", (event) => this.take(event, event.dataTransfer));
  }

  take(event, { files }) {
    if (!files.length) return;
    event.preventDefault();
    this.add([...files]);
  }

  async add(files) {
    for (const file of files) {
      const total = this.bytes.reduce((sum, size) => sum + size, file.size);
      if (!KINDS.includes(file.type)) this.say("notAPicture");
      else if (total > MOST_BYTES || this.urls.length >= MOST) this.say("tooLarge");
      else this.put([...this.urls, await urlOf(file)], [...this.bytes, file.size]);
    }
  }

  put(urls, bytes = urls.map((url) => url.length * 0.75)) {
    Object.assign(this, { urls, bytes });
    drawPictures(this.box, urls, (index) => this.put(urls.toSpliced(index, 1), bytes.toSpliced(index, 1)));
    this.form.dispatchEvent(new Event("input", { bubbles: true }));
  }
}
