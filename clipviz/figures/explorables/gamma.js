// Two sources mixed by gamma. DATA: names (C), sources (2), first and second (n, C), images (n; "" for none), target (n), gamma,
// and, if known, a curve over gamma (% of the images whose label differs from that at DATA.gamma, % that are right) with share, what
// these are percent of, and isOwn: whether the run mixed by it.

const { first, second } = DATA;
const image = choice("image", DATA.images.map((_, i) => `${i + 1} of ${DATA.images.length}`));
const gamma = slider("gamma", { min: 0, max: 1, step: 0.01, value: DATA.gamma }, (v) => v.toFixed(2));
const photos = DATA.images.map((source) => {
  const photo = new Image();
  photo.onload = redraw;
  if (source) photo.src = source;
  return photo;
});

const mixed = (i, g) => first[i].map((value, c) => g * value + (1 - g) * second[i][c]);
const best = (scores) => scores.indexOf(Math.max(...scores));
// Where the label changes on the way from 0 to 1: lines cross, so between any two labels it is found by halving.
function flips(i, low = 0, high = 1) {
  const [from, to] = [best(mixed(i, low)), best(mixed(i, high))];
  if (from === to) return [];
  if (high - low < 1e-6) return [[(low + high) / 2, to]];
  const middle = (low + high) / 2;
  return [...flips(i, low, middle), ...flips(i, middle, high)];
}
function now() {
  const i = image();
  const scores = mixed(i, gamma.get());
  const order = scores.map((_, c) => c).sort((a, b) => scores[b] - scores[a]);
  return { i, scores, order, label: order[0], flips: flips(i) };
}
const DASHES = [[], [8, 4], [2, 3], [9, 3, 2, 3], [14, 4]];
canvas(
  () => 300,
  (pen, width, look) => {
    const { i, scores, label, flips: turns } = now();
    // Those that are first somewhere, then those that are best at either end.
    const ends = [0, 1].flatMap((g) => mixed(i, g).map((v, c) => [v, c]).sort((a, b) => b[0] - a[0]).slice(0, 3).map(([, c]) => c));
    const shown = [...new Set([best(mixed(i, 0)), ...turns.map(([, c]) => c), ...ends])].slice(0, 5);
    const side = DATA.images[i] && Math.min(150, width * 0.26);
    const [left, right, top, bottom] = [+side + 58, width - 10, 14, 250];
    pen.imageSmoothingEnabled = false;
    if (photos[i].naturalWidth) pen.drawImage(photos[i], 0, top, side, side);
    pen.font = letters(12);
    const all = shown.flatMap((c) => [first[i][c], second[i][c]]);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const x = (g) => left + g * (right - left);
    const y = (v) => bottom - 6 - ((v - low) / (high - low || 1)) * (bottom - top - 12);
    line(pen, [[left, top], [left, bottom], [right, bottom]], look.ink, 1);
    pen.fillStyle = look.ink;
    for (const v of [low, high]) write(pen, v.toFixed(1), left - 5, y(v), 60, "right");
    for (const g of [0, 0.25, 0.5, 0.75, 1]) write(pen, String(g), x(g), bottom + 11, 40, "center");
    write(pen, `0: ${DATA.sources[1]}`, left, bottom + 30, (right - left) / 2);
    write(pen, `${DATA.sources[0]}: 1`, right, bottom + 30, (right - left) / 2, "right");
    for (const [g] of turns) line(pen, [[x(g), top], [x(g), bottom]], look.silver, 1, [3, 3]);
    const hues = [look.blue, look.vermillion, look.green, look.purple, look.gray];
    shown.forEach((c, k) => line(pen, [[x(0), y(second[i][c])], [x(1), y(first[i][c])]], hues[k], c === label ? 3.5 : 1.5, DASHES[k]));
    line(pen, [[x(gamma.get()), top], [x(gamma.get()), bottom]], look.ink, 1.5);
    pen.beginPath();
    pen.arc(x(gamma.get()), y(scores[label]), 6, 0, 7);
    pen.fillStyle = hues[shown.indexOf(label)] ?? look.ink;
    pen.fill();
    legend(shown, hues);
  },
  () => told.textContent,
);
const key = make("div", { style: "display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px" });
told.before(key);
function legend(shown, hues) {
  key.replaceChildren(
    ...shown.map((c, k) => {
      const mark = make("canvas", { width: 26, height: 10, "aria-hidden": "true" });
      line(mark.getContext("2d"), [[0, 5], [26, 5]], hues[k], 2.5, DASHES[k]);
      return make("span", {}, mark, ` ${DATA.names[c]}`);
    }),
  );
}
// What the nearest gamma of the curve does to the images, or to those that it was drawn from.
function ofAll() {
  const [changed, right] = DATA.curve ?? [];
  if (!changed) return "";
  const k = Math.round(gamma.get() * (changed.length - 1));
  const than = DATA.isOwn ? "in the run" : `at gamma = ${DATA.gamma.toFixed(2)}`;
  return (
    ` At gamma = ${(k / (changed.length - 1)).toFixed(2)}, ${changed[k].toFixed(1)} ${DATA.share} get another label than ${than}` +
    `${right ? `, and ${right[k].toFixed(1)} % a right one` : ""}.${DATA.isOwn ? "" : " This method mixes otherwise, so all this is hypothetical."}`
  );
}
tell(() => {
  const { i, scores, order, label, flips: turns } = now();
  const is = DATA.names[DATA.target[i]];
  const truth = is && (label === DATA.target[i] ? ", as it should be" : `, though it should be ${is}`);
  const lead = scores[label] - scores[order[1]];
  const where = turns.map(([g, c]) => `at ${g.toFixed(3)} to ${DATA.names[c]}`).join(", ");
  return (
    `gamma = ${gamma.get().toFixed(2)}: the pseudo-label is ${DATA.names[label]}${truth ?? ""}. It leads ${DATA.names[order[1]]} by ${lead.toFixed(2)}. ` +
    (where ? `From 0 to 1 the label changes ${where}.` : "No gamma changes the label of this image.") + ofAll()
  );
});
