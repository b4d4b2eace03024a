// The form of a deployment: a button beside a layout fills the fields with it, and the plan is asked for again.

const form = document.getElementById("deployment-form");

function put(name, value) {
  const field = form?.elements.namedItem(name);
  if (!field) return;
  field.value = value; // of radio buttons: the one with this value is chosen
  if (field instanceof Element) field.classList.remove("is-bad");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-use]");
  if (!button || !form) return;
  for (const [name, value] of Object.entries(JSON.parse(button.dataset.use))) put(name, value);
  form.dispatchEvent(new Event("planned", { bubbles: true }));
});

// What was unfolded in the plan stays so when it is drawn anew.
const folds = () => document.querySelectorAll("#plan details[data-keep]");
let open = new Map();
document.addEventListener("htmx:beforeSwap", ({ target }) => {
  if (target.id === "plan") open = new Map([...folds()].map((fold) => [fold.dataset.keep, fold.open]));
});
document.addEventListener("htmx:afterSwap", ({ target }) => {
  if (target.id !== "plan") return;
  for (const fold of folds()) fold.open = open.get(fold.dataset.keep) ?? fold.open;
});
