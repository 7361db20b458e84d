// The normalized cut of one image for many tau. DATA: image, grid, taus, density and eigenvalue (T), fiedler, mask and
// attention (T, N), asked and level (N, N): the number of taus, from the smallest on, at which two patches are connected.

const [HIGH, WIDE] = DATA.grid;
const N = HIGH * WIDE;
const { level, fiedler, mask, attention, asked } = DATA;
const tau = slider("tau", { min: 0, max: DATA.taus.length - 1, step: 1, value: DATA.start }, (t) => DATA.taus[t].toFixed(2));
const asks = choice("who asks", ["the mask, as in SOAP", "the chosen patch alone"]);
let chosen = Math.floor(HIGH / 2) * WIDE + Math.floor(WIDE / 2);
const photo = new Image();
photo.onload = redraw;
photo.src = DATA.image;

function now() {
  const t = tau.get();
  const neighbors = level[chosen].map((n, j) => n > t && j !== chosen);
  const weights = asks() ? asked[chosen] : attention[t];
  return { t, chosen, neighbors, weights, mask: mask[t].map(Boolean), fiedler: fiedler[t] };
}
// Black over purple and orange to pale yellow: lighter is more.
const heat = (v) => {
  const stops = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
  const at = Math.min(3.999, 4 * Math.max(0, Math.min(1, v)));
  const [a, b, f] = [stops[Math.floor(at)], stops[Math.floor(at) + 1], at % 1];
  return `rgb(${a.map((value, i) => Math.round(value + f * (b[i] - value)))})`;
};
// Purple below 0, white, orange above.
const diverging = (v) => {
  const end = v > 0 ? [230, 97, 1] : [94, 60, 153];
  return `rgb(${end.map((value) => Math.round(247 + Math.min(1, Math.abs(v)) * (value - 247)))})`;
};
const GAP = 12;
const HEAD = 20;
const layout = (width) => {
  const columns = width < 520 ? 2 : 4;
  const side = Math.floor((width - GAP * (columns - 1)) / columns);
  return { side, height: (4 / columns) * (side + HEAD + GAP), corner: (k) => [(k % columns) * (side + GAP), HEAD + Math.floor(k / columns) * (side + HEAD + GAP)] };
};
const TITLES = ["connected with it", "graph A", "Fiedler vector, mask", "attention"];
const node = canvas(
  (width) => layout(width).height,
  (pen, width, look) => {
    const { side, corner } = layout(width);
    const { t, neighbors, weights, mask: inside, fiedler: f } = now();
    const cell = [side / WIDE, side / HIGH];
    const edge = (n, c, start) => start + Math.round(n * cell[c]); // whole pixels, or seams would show
    const place = (k, i) => {
      const [row, column, [left, top]] = [Math.floor(i / WIDE), i % WIDE, corner(k)];
      const [x, y] = [edge(column, 0, left), edge(row, 1, top)];
      return [x, y, edge(column + 1, 0, left) - x, edge(row + 1, 1, top) - y];
    };
    const paint = (k, color) => {
      for (let i = 0; i < N; i++) {
        pen.fillStyle = color(i);
        pen.fillRect(...place(k, i));
      }
    };
    pen.font = letters(12);
    TITLES.forEach((title, k) => write(pen, title, corner(k)[0], corner(k)[1] - 9, side));
    pen.imageSmoothingEnabled = false;
    if (photo.complete) pen.drawImage(photo, ...corner(0), side, side);
    paint(0, (i) => (neighbors[i] ? "rgba(86, 180, 233, 0.55)" : "rgba(0, 0, 0, 0.45)"));
    pen.fillStyle = look.isDark ? "#111" : "#fff";
    pen.fillRect(...corner(1), side, side);
    const dot = side / N;
    pen.fillStyle = look.isDark ? "#ddd" : "#222";
    level.forEach((row, i) => row.forEach((n, j) => n > t && pen.fillRect(corner(1)[0] + j * dot, corner(1)[1] + i * dot, dot + 0.3, dot + 0.3)));
    pen.fillStyle = "rgba(213, 94, 0, 0.6)";
    pen.fillRect(corner(1)[0], corner(1)[1] + chosen * dot, side, Math.max(2, dot));
    const largest = Math.max(...f.map(Math.abs));
    paint(2, (i) => diverging(f[i] / largest));
    outline(pen, inside, (i) => place(2, i), "#000000");
    const most = Math.max(...weights);
    paint(3, (i) => heat(weights[i] / most));
    for (const k of [0, 2, 3]) {
      Object.assign(pen, { strokeStyle: "#D55E00", lineWidth: 3 });
      pen.strokeRect(...place(k, chosen));
    }
    Object.assign(pen, { strokeStyle: look.gray, lineWidth: 1 });
    for (const k of [0, 1, 2, 3]) pen.strokeRect(...corner(k), side, side);
  },
  () => `Four pictures of ${HIGH} by ${WIDE} patches. ${told.textContent}`,
  { tabindex: 0, title: "Point at a patch, or use the arrow keys" },
);
node.style.touchAction = "pan-y";

// The border of the mask: a line where a patch inside has a neighbor outside.
function outline(pen, inside, place, color) {
  const has = (r, c) => r >= 0 && c >= 0 && r < HIGH && c < WIDE && inside[r * WIDE + c];
  inside.forEach((isIn, i) => {
    if (!isIn) return;
    const [r, c] = [Math.floor(i / WIDE), i % WIDE];
    const [x, y, w, h] = place(i);
    if (!has(r - 1, c)) line(pen, [[x, y], [x + w, y]], color, 2.5);
    if (!has(r + 1, c)) line(pen, [[x, y + h], [x + w, y + h]], color, 2.5);
    if (!has(r, c - 1)) line(pen, [[x, y], [x, y + h]], color, 2.5);
    if (!has(r, c + 1)) line(pen, [[x + w, y], [x + w, y + h]], color, 2.5);
  });
}
function pointed(event) {
  const { side, corner } = layout(node.clientWidth);
  for (const k of [0, 1, 2, 3]) {
    const [x, y] = [(event.offsetX - corner(k)[0]) / side, (event.offsetY - corner(k)[1]) / side];
    if (x < 0 || y < 0 || x >= 1 || y >= 1) continue;
    chosen = k === 1 ? Math.floor(y * N) : Math.floor(y * HIGH) * WIDE + Math.floor(x * WIDE);
    redraw();
  }
}
for (const kind of ["pointermove", "pointerdown"]) node.addEventListener(kind, pointed);
node.addEventListener("keydown", (event) => {
  const [r, c] = [Math.floor(chosen / WIDE), chosen % WIDE];
  const to = { ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1] }[event.key];
  if (!to) return;
  event.preventDefault();
  chosen = ((to[0] + HIGH) % HIGH) * WIDE + ((to[1] + WIDE) % WIDE);
  redraw();
});
tell(() => {
  const { t, neighbors, weights, mask: inside, fiedler: f } = now();
  return (
    `tau = ${DATA.taus[t].toFixed(2)}: ${(100 * DATA.density[t]).toFixed(0)} % of the pairs are connected, ` +
    `lambda₂ = ${DATA.eigenvalue[t].toFixed(3)}, the mask has ${inside.filter(Boolean).length} of ${N} patches. ` +
    `Chosen: row ${Math.floor(chosen / WIDE) + 1}, column ${(chosen % WIDE) + 1}, connected with ${neighbors.filter(Boolean).length} patches, ` +
    `${inside[chosen] ? "inside" : "outside"} the mask, Fiedler ${f[chosen].toFixed(2)}; ` +
    `it gets ${(100 * weights[chosen]).toFixed(1)} % of the attention, and the patch that gets most has ${(100 * Math.max(...weights)).toFixed(1)} %.`
  );
});
