// What each class holds, for many strengths of the anchor. DATA: names (C), strengths (K), mass (K, C), text (C),
// truth (C), right (K) in percent.

const { mass } = DATA;
const alpha = slider("anchor alpha", { min: 0, max: DATA.strengths.length - 1, step: 1, value: DATA.start }, (k) => String(DATA.strengths[k]));
const absent = (row) => row.reduce((sum, value, c) => sum + (DATA.truth[c] ? 0 : value), 0);
function now() {
  const k = alpha.get();
  return { k, alpha: DATA.strengths[k], mass: mass[k], absent: absent(mass[k]), right: DATA.right[k] };
}
let shown = [...mass[DATA.start]];
function flow() {
  const target = mass[alpha.get()];
  const isThere = isStill || shown.every((value, c) => Math.abs(value - target[c]) < 0.05);
  shown = isThere ? [...target] : shown.map((value, c) => value + 0.25 * (target[c] - value));
  if (!isThere) redraw();
}
const ROW = 17;
const TOP = 44;
canvas(
  () => TOP + ROW * DATA.names.length + 20,
  (pen, width, look) => {
    flow();
    const left = Math.min(170, width * 0.36);
    const most = Math.max(...mass.flat(), ...DATA.text, ...DATA.truth);
    const x = (v) => left + (v / most) * (width - left - 8);
    pen.font = letters(12);
    const keys = [["there", look.blue], ["absent", look.orange]];
    keys.forEach(([word, color], i) => {
      pen.fillStyle = color;
      pen.fillRect(left + i * 76, 4, 12, 10);
      pen.fillStyle = look.ink;
      write(pen, word, left + 17 + i * 76, 10, 60);
    });
    line(pen, [[left + 4, 22], [left + 4, 36]], look.ink, 2.5);
    write(pen, "by the text alone", left + 17, 30, width - left - 20);
    DATA.names.forEach((name, c) => {
      const y = TOP + ROW * c;
      pen.fillStyle = look.ink;
      pen.font = letters(12, DATA.truth[c] ? "bold" : "");
      write(pen, name, left - 8, y + ROW / 2, left - 10, "right");
      pen.fillStyle = DATA.truth[c] ? look.blue : look.orange;
      pen.fillRect(left, y + 3, x(shown[c]) - left, ROW - 6);
      if (DATA.truth[c]) line(pen, [[x(DATA.truth[c]), y], [x(DATA.truth[c]), y + ROW]], look.ink, 1.5, [2, 2]);
      line(pen, [[x(DATA.text[c]), y + 2], [x(DATA.text[c]), y + ROW - 2]], look.ink, 2.5);
    });
    line(pen, [[left, TOP], [left, TOP + ROW * DATA.names.length]], look.ink, 1);
    pen.fillStyle = look.ink;
    pen.font = letters(12);
    write(pen, "images that a class holds; dotted: what is there", width - 8, TOP + ROW * DATA.names.length + 10, width, "right");
  },
  () => `Bars of what each class holds. ${told.textContent}`,
);
tell(() => {
  const { alpha: a, absent: lost, right } = now();
  const n = DATA.truth.reduce((sum, value) => sum + value);
  return (
    `alpha = ${a}: classes that are not there hold ${lost.toFixed(1)} of the ${n} images (by the text alone ${absent(DATA.text).toFixed(1)}); ` +
    `${right.toFixed(0)} % of the labels are right (by the text ${DATA.textRight.toFixed(0)} %).`
  );
});
