// Colours of the stylesheet for what is drawn on a canvas.

/** The value of a custom property as `rgb(…)`, in the theme at hand. */
export function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color; // light-dark() is resolved only in a computed colour
  probe.remove();
  return found;
}
