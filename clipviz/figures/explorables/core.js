// What all explorables share: controls, canvases and colors. The page around gives DATA, and `root`, the element before the script.

if (root.dataset.awake) return;
root.dataset.awake = "yes";
const asleep = root.querySelector(".clipviz-asleep");
asleep.remove();
const picture = asleep.querySelector("img") ? null : root.closest(".jp-OutputArea-child, .output")?.previousElementSibling;
if (picture?.querySelector("img")) picture.style.display = "none"; // the picture of this explorable, for where no script runs

const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.dataset.lmSuppressShortcuts = ""; // or JupyterLab would take the arrow keys; it looks at the focused element first
  node.append(...children);
  return node;
};
const drawings = [];
const controls = make("div", { style: "display: flex; flex-wrap: wrap; gap: 6px 20px; align-items: center; margin: 6px 0" });
const told = make("p", { role: "status", style: "margin: 6px 0; min-height: 4.2em; font-variant-numeric: tabular-nums" });
root.append(controls, told);

// The colors of clipviz's figures, as `style.py` has them; lighter or darker where the page would swallow them.
const COLORS = { orange: "#E69F00", sky: "#56B4E9", green: "#009E73", blue: "#0072B2", vermillion: "#D55E00", purple: "#CC79A7" };
function colors() {
  const [r, g, b] = getComputedStyle(root).color.match(/[\d.]+/g).map(Number);
  const isDark = 0.3 * r + 0.6 * g + 0.1 * b > 128;
  const shades = isDark
    ? { blue: "#5ab4f0", vermillion: "#ff8a3d", green: "#2cc79a", gray: "#a8a8a8", silver: "#5a5a5a", ink: "#f2f2f2" }
    : { orange: "#bd8200", sky: "#2f94d0", gray: "#767676", silver: "#bbbbbb", ink: "#222222" };
  return { ...COLORS, ...shades, isDark };
}

let isWaiting = false;
function redraw() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    if (root.isConnected) for (const draw of drawings) draw(); // an output that has left the page has no colors
  });
}

// What the numbers mean now, in words: read aloud where a screen reader is.
function tell(sentence) {
  drawings.push(() => (told.textContent = sentence()));
}

// A control for one number: mouse, touch and the arrow keys move it, and so does `set`. Until then it is `value`, to its last digit.
function slider(name, { min, max, step, value }, say) {
  const input = make("input", { type: "range", min, max, step, value, "aria-label": name, style: "width: 170px; accent-color: #0072B2" });
  const output = make("span", { style: "min-width: 7ch", "aria-hidden": "true" }); // the slider says it itself
  controls.append(make("label", { style: "display: inline-flex; align-items: center; gap: 8px" }, name, input, output));
  let now;
  const changed = (to) => {
    now = to;
    output.textContent = say(now);
    input.setAttribute("aria-valuetext", output.textContent);
    redraw();
  };
  const moved = () => changed(Number(input.value)); // the nearest of its steps
  input.addEventListener("input", moved);
  changed(value);
  return { get: () => now, set: (to) => ((input.value = to), moved()) };
}

// A control for one of several things; returns what gives the place of the chosen one.
function choice(name, options, chosen = 0) {
  const select = make("select", { style: "font: inherit; max-width: 240px" }, ...options.map((text, i) => make("option", { value: i }, text)));
  select.value = chosen;
  controls.append(make("label", {}, `${name} `, select));
  select.addEventListener("input", redraw);
  return () => Number(select.value);
}

// A drawing as wide as the page allows; `draw(pen, width, look)`, `describe()` is its text for those who do not see it.
function canvas(height, draw, describe, attributes = {}) {
  const node = make("canvas", { role: "img", style: "display: block; max-width: 100%", ...attributes });
  told.before(node);
  drawings.push(() => {
    const width = Math.min(Math.floor(root.clientWidth), 660) || 600;
    const tall = height(width);
    const scale = devicePixelRatio || 1;
    Object.assign(node, { width: width * scale, height: tall * scale });
    Object.assign(node.style, { width: `${width}px`, height: `${tall}px` });
    node.setAttribute("aria-label", describe());
    const pen = node.getContext("2d");
    pen.scale(scale, scale);
    const look = colors();
    pen.fillStyle = pen.strokeStyle = look.ink;
    pen.textBaseline = "middle";
    pen.font = letters(13);
    draw(pen, width, look);
  });
  return node;
}
const letters = (size, weight = "") => `${weight} ${size}px ${getComputedStyle(root).fontFamily}`;

// Text that is cut where there is no room for it.
function write(pen, text, x, y, room, align = "left") {
  let shown = text;
  while (shown.length > 4 && pen.measureText(shown).width > room) shown = `${shown.slice(0, -2).trimEnd()}…`;
  pen.textAlign = align;
  pen.fillText(shown, x, y);
}
function line(pen, points, color, width = 2, dash = []) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  Object.assign(pen, { strokeStyle: color, lineWidth: width });
  pen.setLineDash(dash);
  pen.stroke();
  pen.setLineDash([]);
}

new ResizeObserver(redraw).observe(root);
const themes = new MutationObserver(redraw);
for (const node of [document.documentElement, document.body])
  themes.observe(node, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-md-color-scheme", "class"] });
