// Prototypes over the epochs, in one plane. DATA: names (C), sets (2), explained (2), paths (2, E, C, 2),
// cosines (E, C) between the sets, turned (2, E, C) in degrees.

const { paths, cosines, turned } = DATA;
const sets = DATA.sets.map((name) => name.replaceAll("_", " "));
const epochs = cosines.length;
const label = choice("class", DATA.names, DATA.chosen);
const epoch = slider("epoch", { min: 0, max: epochs - 1, step: 1, value: 0 }, (e) => (e ? String(e - 1) : "before"));
const isClose = choice("view", ["both sets, to scale", "each set by itself"]);
const play = make("button", { type: "button", style: "font: inherit; padding: 1px 12px; border: 1px solid; border-radius: 3px" }, "play");
controls.append(play);
let at = 0; // what is drawn, on its way to the epoch
let timer = 0;

function walk() {
  const to = epoch.get();
  at = isStill || Math.abs(to - at) < 0.05 ? to : at + (to - at) * 0.2;
  if (at !== to) redraw();
}
function stop() {
  clearInterval(timer);
  timer = 0;
  play.textContent = "play";
}
play.addEventListener("click", () => {
  if (timer) return stop();
  if (epoch.get() === epochs - 1) epoch.set(0);
  play.textContent = "pause";
  timer = setInterval(() => {
    epoch.set(epoch.get() + 1);
    if (epoch.get() === epochs - 1 || !root.isConnected) stop();
  }, 900);
});
function now() {
  return { epoch: epoch.get(), label: label(), cosine: cosines[epoch.get()][label()] };
}
const between = (path, c) => {
  const [low, f] = [Math.floor(at), at % 1];
  const [a, b] = [path[low][c], path[Math.min(low + 1, epochs - 1)][c]];
  return [0, 1].map((i) => a[i] + f * (b[i] - a[i]));
};
const around = (points) => [0, 1].map((i) => [Math.min(...points.map((p) => p[i])), Math.max(...points.map((p) => p[i]))]);
const bounds = { far: around(paths.flat(2)), near: paths.map((path) => around(path.flat())) };
canvas(
  (width) => Math.min(width * 0.72, 430),
  (pen, width, look) => {
    walk();
    const tall = Math.min(width * 0.72, 430);
    const half = width / 2;
    // Where a point of set s is: in a view of all, or in the half that shows this set alone.
    const placed = (s, p) => {
      const limits = isClose() ? bounds.near[s] : bounds.far;
      const across = isClose() ? [12 + s * half, (1 + s) * half - 12] : [12, width - 12];
      return [across, [tall - 34, 34]].map(([from, to], i) => from + ((p[i] - limits[i][0]) / (limits[i][1] - limits[i][0] || 1)) * (to - from));
    };
    const hues = [look.orange, look.green, look.purple, look.sky];
    paths.forEach((path, s) => {
      const place = (p) => placed(s, p);
      const mark = (c, size, isFull) => shape(pen, s, place(between(path, c)), size, hues[s], isFull);
      pen.globalAlpha = 0.45;
      for (let c = 0; c < DATA.names.length; c++) mark(c, 4, true);
      pen.globalAlpha = 1;
      line(pen, path.map((points) => place(points[label()])), hues[s], 1.2, [3, 3]);
      path.forEach((points) => shape(pen, s, place(points[label()]), 3, hues[s], false));
      mark(label(), 9, true);
      shape(pen, s, [10 + (s * width) / paths.length, 10], 6, hues[s], true);
      pen.fillStyle = look.ink;
      write(pen, sets[s], 22 + (s * width) / paths.length, 10, width / paths.length - 26);
    });
    if (isClose()) line(pen, [[half, 24], [half, tall - 24]], look.silver, 1);
    else line(pen, [0, 1].map((s) => placed(s, between(paths[s], label()))), look.ink, 1);
    pen.fillStyle = look.ink;
    pen.font = letters(12);
    write(pen, `the plane shows ${DATA.explained.map((share) => `${(100 * share).toFixed(0)} %`).join(" and ")} of the variance`, 0, tall - 10, width);
  },
  () => `The prototypes in a plane. ${told.textContent}`,
);
function shape(pen, s, [x, y], r, color, isFull) {
  pen.beginPath();
  if (s === 0) pen.arc(x, y, r, 0, 7);
  else if (s === 1) pen.rect(x - r * 0.9, y - r * 0.9, 1.8 * r, 1.8 * r);
  else [[0, -r], [r, r], [-r, r]].forEach(([dx, dy], i) => (i ? pen.lineTo(x + dx, y + dy) : pen.moveTo(x + dx, y + dy)));
  pen.closePath();
  Object.assign(pen, { fillStyle: color, strokeStyle: color, lineWidth: 1.2 });
  if (isFull) pen.fill();
  else pen.stroke();
}
tell(() => {
  const { epoch: e, label: c, cosine } = now();
  const angles = sets.map((name, s) => `${name} ${turned[s][e][c].toFixed(1)}°`).join(", ");
  return (
    `${e ? `After epoch ${e - 1}` : "Before training"}: the cosine between the two prototypes of ${DATA.names[c]} is ${cosine.toFixed(3)} ` +
    `(before: ${cosines[0][c].toFixed(3)}; mean of all classes now: ${(cosines[e].reduce((a, b) => a + b) / cosines[e].length).toFixed(3)}). ` +
    `Turned since the beginning: ${angles}.`
  );
});
