// One image's card: where each method looked before and after, what it says, since when, and by which sentences.

const SHOWN_EPOCHS = 12;

function titled(title, ...children) {
  return make("section", {}, make("h4", {}, title), ...children);
}

function scrolled(label, table) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}

function tableOf(head, rows, caption = "") {
  const table = make("table", {});
  if (caption) table.append(make("caption", {}, caption));
  table.append(make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))));
  const body = rows.map(([first, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...cells.map((cell) => (cell instanceof Node ? cell : make("td", {}, cell)))),
  );
  table.append(make("tbody", {}, ...body));
  return table;
}

// Rows of the overlay canvas. Runs whose image tower stayed as it was share one row, and one map a kind.
function lookRows(images, place) {
  const rows = new Map();
  for (const run of images.runs) {
    const panels = images.maps(run, place);
    const kept = panels.flatMap((panel) => {
      const before = panels.find((other) => other.kind === panel.kind && other.moment === "before");
      const after = panels.find((other) => other.kind === panel.kind && other.moment === "after");
      const stays = before && after && after.bytes.every((value, i) => value === before.bytes[i]);
      if (stays && panel === after) return [];
      return [{ ...panel, title: `${panel.kind}, ${stays ? "before and after" : panel.moment}` }];
    });
    const key = kept.map((panel) => `${panel.title} ${panel.bytes}`).join();
    if (!rows.has(key)) rows.set(key, { runs: [], panels: kept });
    rows.get(key).runs.push(run.label);
  }
  return [...rows.values()].filter((row) => row.panels.length);
}

function overlayTraits(images, place) {
  const rows = lookRows(images, place);
  const picture = { title: "image", label: `image ${images.name(place)}`, shape: [0, 0], mask: false };
  const described = ({ title, shape, mask }) => ({ title, label: `${title}, of ${images.name(place)}`, shape, mask });
  const made = rows.map(({ runs, panels }, i) => ({
    title: runs.join(", "),
    panels: [...(i ? [] : [picture]), ...panels.map(described)],
  }));
  const maps = new Uint8Array(rows.flatMap((row) => row.panels).reduce((sum, panel) => sum + panel.bytes.length, 0));
  let start = 0;
  for (const { bytes } of rows.flatMap((row) => row.panels)) {
    maps.set(bytes, start);
    start += bytes.length;
  }
  return { rows: made.length ? made : [{ title: "No map of this image was kept.", panels: [picture] }], maps };
}

// Class and probability, marked where it is the true one.
function guess(images, label, prob, target) {
  const cell = make("td", { class: label === target ? "right" : "" }, `${label === target ? "✓ " : ""}${images.className(label)} `);
  cell.append(make("span", { class: "value" }, Number.isFinite(prob) ? prob.toFixed(2) : "–"));
  return cell;
}

function topClasses(images, place) {
  const target = images.target[place];
  const rows = [];
  for (const run of images.runs) {
    const top = images.top(run, place);
    const cells = top.map(({ label, prob }) => guess(images, label, prob, target));
    if (!cells.length && images.said(run, place)) cells.push(make("td", {}, images.caption(run, place)));
    const own = cells[top.findIndex(({ label }, k) => k > 2 && label === target)] ?? "";
    rows.push([run.label, ...[0, 1, 2].map((k) => cells[k] ?? ""), ...(target >= 0 ? [own] : [])]);
  }
  const head = ["method", "first", "second", "third", ...(target >= 0 ? ["true class, if none of these"] : [])];
  return scrolled("Top classes of every method", tableOf(head, rows));
}

function sourceLogits(images, place) {
  return images.runs.flatMap((run) => {
    const top = images.top(run, place);
    const names = Object.keys(top[0]?.logits ?? {});
    if (!names.length) return [];
    const rows = top.map(({ label, logits }) => [images.className(label), ...names.map((name) => logits[name].toFixed(2))]);
    return [scrolled(`Logits of ${run.label}`, tableOf(["class", ...names.map((name) => name.replaceAll("_", " "))], rows, run.label))];
  });
}

function timeline(images, place) {
  const runs = images.runs.filter(evolves);
  const epochs = [...new Set(runs.flatMap((run) => run.epochs))].sort((a, b) => a - b);
  const step = Math.ceil(epochs.length / SHOWN_EPOCHS);
  const shown = epochs.filter((_, i) => i % step === 0 || i === epochs.length - 1);
  const rows = runs.map((run) => [
    run.label,
    ...shown.map((epoch) => {
      const k = run.epochs.indexOf(epoch);
      const said = k < 0 ? null : images.said(run, place, k);
      if (!said) return make("td", {}, "");
      const mark = { true: "✓ ", false: "✗ ", null: "" }[said.isRight];
      const look = { true: "right", false: "wrong", null: "" }[said.isRight];
      return make("td", { class: look }, `${mark}${images.labels[said.label] ?? images.className(said.label)} ${said.confidence.toFixed(2)}`);
    }),
  ]);
  return scrolled("Its label over the epochs", tableOf(["method", ...shown.map((epoch) => (epoch < 0 ? "before" : `epoch ${epoch}`))], rows));
}

function nearestSentences(images, run, place) {
  const rows = images.nearest(run, place);
  if (!rows.length) return [make("p", {}, `None were kept of this image for ${run.label}.`)];
  return [
    scrolled(
      "Nearest sentences",
      tableOf(["class", "sentence", "cosine"], rows.map(([label, sentence, cosine]) => [
        `${label === images.target[place] ? "✓ " : ""}${images.className(label)}`, images.sentences[sentence], cosine.toFixed(3),
      ])),
    ),
  ];
}

// Fill the card; returns nothing, the overlay follows when its picture is there.
function fillCard(card, images, asked, place, overlay, steps) {
  const target = images.target[place];
  const true_ = target < 0 ? "true class unknown" : `true class: ${images.className(target)}`;
  const link = make("a", { href: `#image=eval/${images.index[place]}` }, "link to this image");
  const head = make("header", {}, make("h3", { id: "card-title" }, images.name(place)), make("p", {}, `${true_} · `, link), ...steps);
  overlay.fill(overlayTraits(images, place));
  const { side, columns } = images;
  overlay.set("piece", [(place % columns) * side, Math.floor(place / columns) * side, side, side]);
  const logits = sourceLogits(images, place);
  card.replaceChildren(
    head,
    titled("Where it looked", card.looks),
    titled("What every method says in the end", topClasses(images, place)),
    ...(images.runs.some(evolves) ? [titled("Its label over the epochs", timeline(images, place))] : []),
    ...(logits.length ? [make("details", {}, make("summary", {}, "Logits of the parts of each method"), ...logits)] : []),
    titled(`Nearest sentences, by ${asked.run.label}`, ...nearestSentences(images, asked.run, place)),
  );
  card.hidden = false;
}
