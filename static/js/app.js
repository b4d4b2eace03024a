// What every page of a signed-in user loads.
import "./ui.js";
import "./live.js";
import "./times.js";

// On a phone the row of pages is wider than the screen: the one that is open is brought into sight.
const open = document.querySelector(".nav [aria-current]");
if (open) open.parentElement.scrollLeft = open.offsetLeft - (open.parentElement.clientWidth - open.clientWidth) / 2;
