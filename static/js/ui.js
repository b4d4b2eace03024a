// Small things of every page: theme, time zone, copy buttons, dialogs, buttons that wait, and messages for htmx.

const root = document.documentElement;
const YEAR = 31536000;

function remember(name, value) {
  document.cookie = `${name}=${value}; path=/; max-age=${YEAR}; samesite=lax`;
}

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone) remember("tz", zone);

/** system → light → dark; the server writes the choice into the page, so that nothing flashes. */
const THEMES = ["system", "light", "dark"];
const themeButton = document.querySelector("[data-theme-button]");

function showTheme(name) {
  themeButton.title = themeButton.dataset[name];
  themeButton.setAttribute("aria-label", themeButton.dataset[name]);
  for (const picture of themeButton.children) picture.toggleAttribute("hidden", picture.dataset.for !== name);
}

if (themeButton) {
  showTheme(root.dataset.theme ?? "system");
  themeButton.onclick = () => {
    const name = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    remember("theme", name);
    showTheme(name);
    document.dispatchEvent(new Event("deck:theme"));
  };
}

async function copy(button) {
  const source = button.closest("[data-copy-from]").querySelector("code, input");
  const text = source.value ?? source.textContent;
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else { // plain HTTP on another machine: the browser offers no clipboard, so select for Ctrl-C
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  button.classList.add("is-copied");
  setTimeout(() => button.classList.remove("is-copied"), 1600);
}

document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  if (on("[data-copy]")) copy(on("[data-copy]"));
  if (on("[data-open]")) document.getElementById(on("[data-open]").dataset.open).showModal();
  if (event.target.matches("dialog")) event.target.close(); // beside the dialog's panel
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// A form that takes seconds says so, and is sent once.
function wait(form, on) {
  form.querySelectorAll("button:not([type=button])").forEach((button) => button.toggleAttribute("data-busy", on));
}
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.querySelector("[data-busy]")) event.preventDefault();
  else wait(form, true);
});
window.addEventListener("pageshow", () => document.querySelectorAll("form").forEach((form) => wait(form, false)));

// htmx: any end of a request ends the waiting; what is not a Problem (409, drawn by htmx) gets a sentence of its own.
document.addEventListener("htmx:afterRequest", ({ target }) => {
  if (target.matches("form")) wait(target, false);
  target.closest("dialog")?.close();
});
function alertOf(name) {
  const template = document.getElementById(name);
  document.getElementById("alerts").replaceChildren(template.content.cloneNode(true));
}
document.addEventListener("htmx:responseError", ({ detail }) => {
  if (detail.requestConfig.verb !== "get") alertOf(detail.xhr.status === 403 ? "alert-forbidden" : "alert-error");
});
document.addEventListener("htmx:sendError", ({ detail }) => {
  if (detail.requestConfig.verb !== "get") alertOf("alert-offline");
});
