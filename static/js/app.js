// What every page of a signed-in user loads.
import "./ui.js";
import "./live.js";
import "./times.js";
