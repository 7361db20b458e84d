// Two cosines and the scale through the softmax. DATA: names, cosines (C), scale.

const values = [...DATA.cosines];
const range = { min: -0.2, max: 0.8, step: 0.005 };
const moved = [0, 1].map((c) => slider(`cosine of ${DATA.names[c]}`, { ...range, value: values[c] }, (v) => v.toFixed(3)));
const scale = slider("temperature 1/s", { min: -2.5, max: 0, step: 0.01, value: -Math.log10(DATA.scale) }, (v) => (10 ** v).toFixed(4));

function now() {
  const cosines = values.map((value, c) => (c < 2 ? moved[c].get() : value));
  const s = 10 ** -scale.get();
  const largest = Math.max(...cosines);
  const exps = cosines.map((cosine) => Math.exp(s * (cosine - largest)));
  const sum = exps.reduce((a, b) => a + b);
  const label = cosines.indexOf(largest);
  return { cosines, s, label, probs: exps.map((e) => e / sum) };
}
const ROW = 46;
canvas(
  () => 26 + ROW * values.length,
  (pen, width, look) => {
    const { cosines, probs, label } = now();
    const half = (width - 24) / 2;
    pen.font = letters(13, "bold");
    write(pen, "cosine f · w", 0, 10, half);
    write(pen, "probability", half + 24, 10, half);
    cosines.forEach((cosine, c) => {
      const top = 26 + ROW * c;
      pen.fillStyle = look.ink;
      pen.font = letters(13, c === label ? "bold" : "");
      write(pen, `${c === label ? "★ " : ""}${DATA.names[c]}`, 0, top + 8, half);
      write(pen, probs[c].toFixed(3), half + 24, top + 8, half);
      const zero = (half * 0.2) / 1;
      pen.fillStyle = c === label ? look.blue : look.gray;
      pen.fillRect(Math.min(zero, zero + half * cosine), top + 18, Math.abs(half * cosine), 16);
      pen.fillRect(half + 24, top + 18, half * probs[c], 16);
      line(pen, [[zero, top + 16], [zero, top + 36]], look.ink, 1);
      line(pen, [[half + 24, top + 16], [half + 24, top + 36]], look.ink, 1);
    });
  },
  () => told.textContent,
);
tell(() => {
  const { cosines, s, probs, label } = now();
  const [a, b] = cosines;
  return (
    `s = ${s.toFixed(1)}. The label is ${DATA.names[label]}, with confidence ${probs[label].toFixed(3)}. ` +
    `The first two logits are s · ${a.toFixed(3)} = ${(s * a).toFixed(1)} and s · ${b.toFixed(3)} = ${(s * b).toFixed(1)}; ` +
    `their difference, ${(s * (a - b)).toFixed(1)}, is all that the softmax sees of the two.`
  );
});
