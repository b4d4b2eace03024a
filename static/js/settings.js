// The parameters of a request: sliders and their fields, remembered in this browser until they are reset.

const form = document.querySelector("[data-settings]");
const KEPT = "quarterdeck.playground";
const WIDE = 1080; // below it the settings stand above the chat, folded

/** All values as the form has them: strings by name. */
export function settings() {
  return Object.fromEntries(new FormData(form));
}

/** Whether they can be sent; unfolds and points at what cannot. */
export function usable() {
  const wrong = form.querySelector(":invalid:not(fieldset)");
  for (let fold = wrong?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  return form.reportValidity();
}

function slide() {
  for (const slider of form.querySelectorAll("[data-slides]")) slider.value = form.elements[slider.dataset.slides].value;
}

/** Put values back; what is not named keeps its own. */
export function restore(values) {
  for (const [name, value] of Object.entries(values ?? {})) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  changed();
}

function changed() {
  slide();
  localStorage.setItem(KEPT, JSON.stringify({ ...settings(), system: "" })); // what was told a model is nobody else's business
  form.dispatchEvent(new CustomEvent("deck:settings", { bubbles: true }));
}

form.addEventListener("input", ({ target }) => {
  if (target.dataset.slides) form.elements[target.dataset.slides].value = target.value;
  changed();
});
form.addEventListener("reset", () => setTimeout(changed)); // the values are put back after the event
form.addEventListener("submit", (event) => event.preventDefault());

const fold = document.querySelector("[data-settings-fold]");
if (innerWidth < WIDE) fold.open = false;
restore(JSON.parse(localStorage.getItem(KEPT) ?? "{}"));
