// Shared by all views of clipviz. Every text from data is set as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function makeSvg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A trait of bytes arrives as a DataView.
function bytesOf(model, name) {
  const view = model.get(name);
  return view ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array();
}

// Decoded picture of a trait of bytes, or null where there is none; a page without a kernel has it decoded already.
async function bitmapOf(model, name) {
  if (model.get(name) instanceof ImageBitmap) return model.get(name);
  const bytes = bytesOf(model, name);
  if (!bytes.length) return null;
  return createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
}

// Where the mouse is on a canvas of `width` pixels, which a narrow page shows smaller.
function placeOn(canvas, event, width) {
  const box = canvas.getBoundingClientRect();
  const scale = width / (box.width || width);
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

// Listen to traits of a model for as long as a view lives; returns the function that ends it.
function listen(model, names, draw) {
  for (const name of names) model.on(`change:${name}`, draw);
  return () => {
    for (const name of names) model.off(`change:${name}`, draw);
  };
}

// Draw again for another width (a sidebar, a split, a window); returns the function that ends it.
function fitted(node, draw) {
  let width = 0;
  const observer = new ResizeObserver(() =>
    requestAnimationFrame(() => {
      const now = Math.floor(node.clientWidth);
      if (now && now !== width) draw((width = now));
    }),
  );
  observer.observe(node);
  return () => observer.disconnect();
}

// Draw again when JupyterLab goes from light to dark or back; returns the function that ends it.
function themed(draw) {
  const observer = new MutationObserver(() => requestAnimationFrame(draw));
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  return () => observer.disconnect();
}

const isDark = () => document.body.dataset.jpThemeLight === "false";

// A color of the data as the theme shows it: black lines would vanish on a dark page. For SVG, and for a canvas in `el`.
const paint = (color) => `var(--clipviz-${color.slice(1).toLowerCase()}, ${color})`;
const solid = (el, color) => getComputedStyle(el).getPropertyValue(`--clipviz-${color.slice(1).toLowerCase()}`).trim() || color;

// The room of a text in ordinary letters, of which wide ones (Chinese, Japanese, Korean) take more; emoji count as two.
const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]/g;
const lettersOf = (text) => text.length + 0.7 * (text.match(WIDE) || []).length;

// One call for the several traits that change with one message.
function later(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      draw();
    });
  };
}

// Bilinear values of a map of bytes (h, w) at size x size points, in [0, 1].
function enlarged(map, h, w, size, smooth) {
  const values = new Float32Array(size * size);
  for (let y = 0; y < size; y++) {
    const v = Math.min(Math.max(((y + 0.5) / size) * h - 0.5, 0), h - 1);
    const top = smooth ? Math.floor(v) : Math.round(v);
    const bottom = Math.min(top + 1, h - 1);
    const fy = smooth ? v - top : 0;
    for (let x = 0; x < size; x++) {
      const u = Math.min(Math.max(((x + 0.5) / size) * w - 0.5, 0), w - 1);
      const left = smooth ? Math.floor(u) : Math.round(u);
      const right = Math.min(left + 1, w - 1);
      const fx = smooth ? u - left : 0;
      const upper = map[top * w + left] * (1 - fx) + map[top * w + right] * fx;
      const lower = map[bottom * w + left] * (1 - fx) + map[bottom * w + right] * fx;
      values[y * size + x] = (upper * (1 - fy) + lower * fy) / 255;
    }
  }
  return values;
}

// Lay a map over a gray copy of a piece [x, y, width, height] of a bitmap; of a change, one half is none.
function overlay(canvas, bitmap, piece, map, h, w, colors, { opacity = 0.7, contour = false, mask = false, change = false } = {}) {
  const size = canvas.width;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = size < 4 * piece[2];
  context.drawImage(bitmap, ...piece, 0, 0, size, size);
  if (!map) return;
  const values = enlarged(map, h, w, size, !mask);
  const pixels = context.getImageData(0, 0, size, size);
  const data = pixels.data;
  for (let i = 0; i < values.length; i++) {
    const gray = 64 + 0.75 * (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]);
    const color = 3 * Math.round(255 * values[i]);
    const share = opacity * (change ? Math.sqrt(Math.abs(2 * values[i] - 1)) : 0.25 + 0.75 * values[i]);
    for (let c = 0; c < 3; c++) data[4 * i + c] = gray * (1 - share) + colors[color + c] * share;
  }
  if (contour && !change) drawContour(data, values, size);
  context.putImageData(pixels, 0, 0);
}

// Color each part of a mask of numbers (h, w) over a gray copy of the image; 0 is background.
function overlayParts(canvas, bitmap, piece, ids, h, w, colors) {
  const size = canvas.width;
  overlay(canvas, bitmap, piece, new Uint8Array(h * w), h, w, colors, { opacity: 0 });
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, size, size);
  for (let i = 0; i < size * size; i++) {
    const id = ids[Math.floor((Math.floor(i / size) / size) * h) * w + Math.floor(((i % size) / size) * w)];
    const color = 3 * ((id - 1) % (colors.length / 3));
    for (let c = 0; id && c < 3; c++) pixels.data[4 * i + c] = 0.15 * pixels.data[4 * i + c] + 0.85 * colors[color + c];
  }
  context.putImageData(pixels, 0, 0);
}

// White line with a black edge where the map crosses half of its maximum.
function drawContour(data, values, size) {
  const inside = (x, y) => values[Math.min(y, size - 1) * size + Math.min(x, size - 1)] >= 0.5;
  const put = (x, y, level) => {
    if (x < size && y < size) data.fill(level, 4 * (y * size + x), 4 * (y * size + x) + 3);
  };
  const edges = [];
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++)
      if (inside(x, y) !== inside(x + 1, y) || inside(x, y) !== inside(x, y + 1)) edges.push([x, y]);
  for (const [x, y] of edges) {
    put(x + 1, y + 1, 0);
    put(x + 1, y, 0);
  }
  for (const [x, y] of edges) put(x, y, 255);
}

// ------------------------------------------------------------------------------------------------ charts

const DASHES = { solid: "", dash: "6 3", dot: "2 3", dashdot: "7 3 2 3", longdash: "9 4", longdashdot: "9 4 2 4" };

function marker(symbol, x, y, color) {
  color = paint(color);
  const r = 3.2;
  if (symbol === "square") return makeSvg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, fill: color });
  if (symbol === "circle") return makeSvg("circle", { cx: x, cy: y, r, fill: color });
  const shapes = {
    diamond: `M${x},${y - 4.4}L${x + 4.4},${y}L${x},${y + 4.4}L${x - 4.4},${y}Z`,
    "triangle-up": `M${x},${y - 4}L${x + 4},${y + 3.4}L${x - 4},${y + 3.4}Z`,
    x: `M${x - r},${y - r}L${x + r},${y + r}M${x - r},${y + r}L${x + r},${y - r}`,
  };
  const isLine = symbol === "x";
  return makeSvg("path", { d: shapes[symbol] || "", fill: isLine ? "none" : color, stroke: isLine ? color : "none" });
}

function niceTicks(low, high, n) {
  const raw = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

const written = (value) => `${+value.toPrecision(6)}`;

function hatching(root, color, hatch) {
  if (!hatch) return paint(color);
  const id = `clipviz-hatch-${Math.random().toString(36).slice(2)}`; // every view has its own copy of this script
  const lines = { "/": "M0,6L6,0", "\\": "M0,0L6,6", "|": "M3,0L3,6", x: "M0,0L6,6M0,6L6,0", ".": "M3,2L3,4" }[hatch];
  root.append(
    makeSvg(
      "pattern",
      { id, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
      makeSvg("rect", { width: 6, height: 6, fill: paint(color) }),
      makeSvg("path", { d: lines, stroke: "white", "stroke-width": 1.3 }),
    ),
  );
  return `url(#${id})`;
}

// The chart that `clipviz.widgets.charts.Chart.to_json` describes.
function chart(spec, width = 340) {
  const box = make("figure", { class: "clipviz-chart", role: "img", "aria-label": spec.title });
  box.append(make("figcaption", {}, spec.title));
  box.style.width = `${width}px`;
  const xs = spec.series.flatMap((s) => s.x);
  if (!xs.length) {
    box.append(make("p", { class: "clipviz-empty" }, spec.empty));
    return box;
  }
  const [right, top] = [8, spec.marks.length ? 20 : 8];
  const isBars = spec.kind === "bars";
  const pad = isBars || spec.names ? 0.5 : 0;
  const held = [...xs, ...spec.marks.map(([x]) => x)];
  let [x0, x1] = [Math.min(Math.min(...xs) - pad, ...held), Math.max(Math.max(...xs) + pad, ...held)];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  const [y0, y1] = spec.y_range || yExtent(spec.series);
  const left = Math.max(46, 24 + 7 * Math.max(...niceTicks(y0, y1, 4).map((y) => written(y).length))); // beside the label
  const room = (width - left - right) / Math.max(1, spec.ticks.length);
  const rows = spec.names ? Math.max(2, Math.ceil(Math.max(...spec.ticks.map(([, text]) => 6.6 * lettersOf(text))) / room)) : 1;
  const bottom = 22 + 12 * rows;
  const height = Math.max(170, 124 + bottom);
  const root = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  drawAxes(root, spec, { x0, x1, y0, y1, px, py, left, right, top, bottom, width, height, rows });
  const looks = isBars ? drawBars(root, spec, px, py, x1 - x0) : drawLines(root, spec, px, py);
  spec.marks.forEach(([x, text], i) => {
    root.append(makeSvg("line", { x1: px(x), x2: px(x), y1: top, y2: height - bottom, class: "clipviz-mark" }));
    const start = Math.max(left, Math.min(px(x) + 3, width - 7 * lettersOf(text))); // one below the other, and within the chart
    root.append(label(start, top - 6 + 12 * (i % 4), text, "start", { class: "clipviz-marked" }));
  });
  box.append(root, legend(spec.series, looks));
  return box;
}

function yExtent(series) {
  const ys = series.flatMap((s) => s.y).filter((y) => y !== null);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (!ys.length) [low, high] = [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function label(x, y, text, anchor, extra = {}) {
  return makeSvg("text", { x, y, "text-anchor": anchor, ...extra }, text);
}

function drawAxes(root, spec, a) {
  const floor = a.height - a.bottom;
  const ticks = spec.ticks.length ? thinned(spec.ticks, 9) : niceTicks(a.x0, a.x1, 5).map((v) => [v, written(v)]);
  for (const y of niceTicks(a.y0, a.y1, 4)) {
    root.append(makeSvg("line", { x1: a.left, x2: a.width - a.right, y1: a.py(y), y2: a.py(y), class: "clipviz-grid" }));
    root.append(label(a.left - 5, a.py(y) + 3.5, written(y), "end"));
  }
  ticks.forEach(([x, text], i) => {
    const half = 3.2 * lettersOf(text); // long names stay within the chart
    const place = Math.max(half, Math.min(a.px(x), a.width - half));
    root.append(label(place, floor + 13 + 12 * (i % a.rows), text, "middle"));
  });
  root.append(makeSvg("path", { d: `M${a.left},${a.top}V${floor}H${a.width - a.right}`, class: "clipviz-axis" }));
  root.append(label((a.left + a.width - a.right) / 2, a.height - 5, spec.x_label, "middle"));
  const middle = (a.top + floor) / 2;
  root.append(label(11, middle, spec.y_label, "middle", { transform: `rotate(-90 11 ${middle})` }));
}

// At most so many, the last of them: the newest batch, or an epoch of which only a part was done.
function thinned(items, most) {
  const [step, end] = [Math.ceil(items.length / most), items.length - 1];
  return items.filter((_, i) => i === end || (i % step === 0 && i + step <= end));
}

function drawLines(root, spec, px, py) {
  return spec.series.map((s) => {
    let path = "";
    let pen = "M";
    s.x.forEach((x, i) => {
      if (s.y[i] === null) pen = "M";
      else {
        path += `${pen}${px(x).toFixed(1)},${py(s.y[i]).toFixed(1)}`;
        pen = "L";
      }
    });
    const style = { fill: "none", stroke: s.dash === "none" ? "none" : paint(s.color), "stroke-width": 1.8, "stroke-dasharray": DASHES[s.dash] || "" };
    root.append(makeSvg("path", { d: path, ...style }));
    const symbol = s.symbol || (s.x.length === 1 ? "circle" : "");
    if (symbol)
      s.x.forEach((x, i) => {
        if (s.y[i] !== null) root.append(marker(symbol, px(x), py(s.y[i]), s.color));
      });
    return { style, symbol };
  });
}

function drawBars(root, spec, px, py, span) {
  const below = new Map();
  const barWidth = Math.min(44, (px(span) - px(0)) / span * 0.75);
  return spec.series.map((s) => {
    const fill = hatching(root, s.color, s.hatch);
    s.x.forEach((x, i) => {
      const start = below.get(x) || 0;
      const end = start + (s.y[i] || 0);
      below.set(x, end);
      const at = { x: px(x) - barWidth / 2, y: py(end), width: barWidth, height: Math.max(0, py(start) - py(end)) };
      root.append(makeSvg("rect", { ...at, fill }, makeSvg("title", {}, `${s.name}: ${written(s.y[i] || 0)}`)));
    });
    return { fill };
  });
}

function legend(series, looks) {
  const list = make("div", { class: "clipviz-legend" });
  series.forEach((s, i) => {
    const swatch = makeSvg("svg", { width: 24, height: 12, "aria-hidden": "true" });
    if (looks[i].fill) swatch.append(makeSvg("rect", { width: 24, height: 12, fill: looks[i].fill }));
    else {
      swatch.append(makeSvg("path", { d: "M0,6H24", ...looks[i].style }));
      if (looks[i].symbol) swatch.append(marker(looks[i].symbol, 12, 6, s.color));
    }
    list.append(make("span", {}, swatch, make("span", {}, s.name)));
  });
  return list;
}
