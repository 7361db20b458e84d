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
  const picture = { title: "image", shape: [0, 0], bytes: new Uint8Array() };
  const parts = images.partMask(place);
  const own = [picture, ...(parts ? [{ title: "true parts", parts: true, ...parts }] : [])];
  const rows = lookRows(images, place);
  if (rows.length) rows[0].panels.unshift(...own);
  else rows.push({ runs: ["No map of this image was kept."], panels: own });
  const shown = rows.flatMap((row) => row.panels);
  const maps = new Uint8Array(shown.reduce((sum, panel) => sum + panel.bytes.length, 0));
  let start = 0;
  for (const { bytes } of shown) {
    maps.set(bytes, start);
    start += bytes.length;
  }
  const described = ({ title, shape, mask, parts }) => ({ title, label: `${title}, of ${images.name(place)}`, shape, mask, parts });
  return { rows: rows.map(({ runs, panels }) => ({ title: runs.join(", "), panels: panels.map(described) })), maps };
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

// What the parts of a method say of the surest classes, against the mean of these: [{label, prob, parts: {name: number}, sum}].
function whyLogits(images, run, place) {
  const top = images.top(run, place);
  const names = Object.keys(top[0]?.logits ?? {}).filter((name) => top.every(({ logits }) => Number.isFinite(logits[name])));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const means = Object.fromEntries(names.map((name) => [name, mean(top.map(({ logits }) => logits[name]))]));
  const rows = top.map(({ label, prob, logits }) => {
    const parts = Object.fromEntries(names.map((name) => [name, logits[name] - means[name]]));
    return { label, prob, parts, sum: Object.values(parts).reduce((sum, part) => sum + part, 0) };
  });
  return { names, rows };
}

// Whether a method's logits are the sum of those of its parts, told by the numbers of all images: then the sum says why.
function isSum(images, run) {
  let told = 0;
  for (let place = 0; place < images.n; place++) {
    const { names, rows } = whyLogits(images, run, place);
    const [first, ...others] = names.length > 1 ? rows.filter(({ prob }) => prob > 1e-5) : []; // of less, halves say nothing
    const gaps = others.map(({ prob, sum }) => Math.abs(Math.log(prob / first.prob) - (sum - first.sum)) / (1 + 0.1 * Math.abs(sum - first.sum)));
    if (gaps.some((gap) => gap > 0.2)) return false;
    told += gaps.length;
  }
  return told > 0;
}

// A number with a bar from the middle, so far as the largest of them all reaches.
function signed(value, most) {
  const share = (50 * value) / (most || 1);
  const cell = make("td", { class: "signed" }, make("span", {}, `${Number(value.toFixed(1)) < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`));
  const bar = make("i", { class: value < 0 ? "less" : "more" });
  Object.assign(bar.style, { left: `${50 + Math.min(share, 0)}%`, width: `${Math.abs(share)}%` });
  cell.append(make("div", { class: "bar-of" }, bar));
  return cell;
}

function partsOf(images, run, place) {
  const { names, rows } = whyLogits(images, run, place);
  if (!names.length) return [];
  const adds = (run.adds ??= isSum(images, run));
  const most = Math.max(...rows.flatMap(({ parts, sum }) => [...Object.values(parts), adds ? sum : 0]).map(Math.abs));
  const caption = adds
    ? "What each part adds to the logit of a class, minus the mean of these classes; the largest sum wins"
    : "Logits of each part of the method, minus the mean of these classes";
  const head = ["class", ...names.map((name) => name.replaceAll("_", " ")), ...(adds ? ["sum"] : [])];
  const body = rows.map(({ label, parts, sum }) => [
    images.marked(label, place), ...names.map((name) => signed(parts[name], most)), ...(adds ? [signed(sum, most)] : []),
  ]);
  return [scrolled(`Logits of ${run.label}`, tableOf(head, body, caption))];
}

// Small pictures of the sheet with a line below each.
function pictures(images, label, items) {
  const list = make("ul", { class: "pictures", "aria-label": label });
  for (const { at, text } of items) {
    const canvas = make("canvas", { width: 84, height: 84, role: "img", "aria-label": text });
    if (at !== null) overlay(canvas, images.picture, images.piece(at));
    list.append(make("li", {}, canvas, make("span", {}, at === null ? `${text} (image not kept)` : text)));
  }
  return list;
}

function cacheEntries(images, run, place) {
  const entries = run.cache[images.index[place]] ?? [];
  const items = entries.map(([label, vote, at]) => ({ at, text: `${images.marked(label, place)} ${vote < 0 ? "−" : "+"}${Math.abs(vote).toFixed(2)}` }));
  if (!items.length && Object.keys(run.cache).length) return [make("p", {}, "Cached images and their contributions were kept only for the most instructive images of this method.")];
  return items.length ? [make("p", {}, "The cached images that contribute most, with what each adds to the logit of its class:"), pictures(images, "Cache entries", items)] : [];
}

function surestOf(images, run, place) {
  const target = images.target[place];
  const said = images.said(run, place)?.label;
  const labels = new Set([...images.top(run, place).slice(0, 2).map(({ label }) => label), said, target]);
  const items = [...labels].filter((label) => label in run.surest).map((label) => ({ at: run.surest[label], text: images.marked(label, place) }));
  return items.length ? [make("p", {}, "The most confident image of each of these classes:"), pictures(images, "Most confident images", items)] : [];
}

function sourceLogits(images, place) {
  return images.runs.flatMap((run) => {
    const top = images.top(run, place);
    const names = Object.keys(top[0]?.logits ?? {});
    if (!names.length) return [];
    const text = (value) => (Number.isFinite(value) ? value.toFixed(2) : "–");
    const rows = top.map(({ label, logits }) => [images.marked(label, place), ...names.map((name) => text(logits[name]))]);
    return [scrolled(`Logits of the parts of ${run.label}`, tableOf(["class", ...names.map((name) => name.replaceAll("_", " "))], rows, run.label))];
  });
}

// One row a method; epochs of one label are one cell, with the confidence at its beginning and its end.
function timeline(images, place) {
  const runs = images.runs.filter(evolves);
  const epochs = [...new Set(runs.flatMap((run) => run.epochs))].sort((a, b) => a - b);
  const step = Math.ceil(epochs.length / SHOWN_EPOCHS);
  const shown = epochs.filter((_, i) => i % step === 0 || i === epochs.length - 1);
  const rows = runs.map((run) => {
    const stretches = [];
    for (const epoch of shown) {
      const k = run.epochs.indexOf(epoch);
      const said = k < 0 ? null : images.said(run, place, k);
      const last = stretches.at(-1);
      if (last && last[0]?.label === said?.label && last[0]?.decider === said?.decider) last.push(said);
      else stretches.push([said]);
    }
    return [run.label, ...stretches.map((stretch) => stretchCell(images, stretch))];
  });
  return scrolled("Label over the epochs", tableOf(["method", ...shown.map((epoch) => (epoch < 0 ? "before" : `epoch ${epoch}`))], rows));
}

function stretchCell(images, stretch) {
  const cell = make("td", { colspan: stretch.length });
  const [first, last] = [stretch[0], stretch.at(-1)];
  if (!first) return cell;
  const [from, to] = [first.confidence.toFixed(2), last.confidence.toFixed(2)];
  const mark = { true: "✓ ", false: "✗ ", null: "" }[first.isRight];
  cell.className = { true: "stretch right", false: "stretch wrong", null: "stretch" }[first.isRight];
  cell.append(`${mark}${images.labels[first.label] ?? images.className(first.label)} `, make("span", { class: "value" }, from === to ? from : `${from}–${to}`));
  if (first.decider) cell.append(make("div", { class: "value" }, first.decider));
  return cell;
}

function nearestSentences(images, run, place) {
  const rows = images.nearest(run, place);
  if (!rows.length) return [make("p", {}, `No sentences were kept of this image for ${run.label}.`)];
  return [
    scrolled(
      "Nearest sentences",
      tableOf(["class", "sentence", "cosine"], rows.map(([label, sentence, cosine]) => [
        images.marked(label, place), images.sentences[sentence], cosine.toFixed(3),
      ]), "The sentences about these classes that are most similar to the image"),
    ),
  ];
}

// Why one method says so: a button for each, and all that its trace kept of this image.
function why(images, asked, place, choose) {
  const { run } = asked;
  const buttons = images.runs.map((other) => {
    const button = make("button", { type: "button", "aria-pressed": `${other === run}` }, other.label);
    button.addEventListener("click", () => choose(other));
    return button;
  });
  const found = [
    ...partsOf(images, run, place), ...surestOf(images, run, place), ...cacheEntries(images, run, place), ...nearestSentences(images, run, place),
  ];
  const methods = make("div", { class: "bar methods", role: "group", "aria-label": "method to explain" }, ...buttons);
  return images.runs.length > 1 ? [methods, ...found] : found;
}

// Fill the card; returns nothing, the overlay follows when its picture is there.
function fillCard(card, images, asked, place, overlay, steps, choose) {
  const target = images.target[place];
  const true_ = target < 0 ? "true class unknown" : `true class: ${images.className(target)}`;
  const link = make("a", { href: `#image=eval/${images.index[place]}` }, "link to this image");
  const said = location.protocol === "about:" ? [true_] : [`${true_} · `, link]; // a view within a page has no address
  const head = make("header", {}, make("h3", { id: "card-title" }, images.name(place)), make("p", {}, ...said), ...steps);
  overlay.fill(overlayTraits(images, place));
  overlay.set("piece", images.piece(place));
  const logits = sourceLogits(images, place);
  card.replaceChildren(
    head,
    titled("Where it looked", card.looks),
    titled("Predictions of every method, last epoch", topClasses(images, place)),
    ...(images.runs.some(evolves) ? [titled("Label over the epochs", timeline(images, place))] : []),
    titled(`Why ${asked.run.label} predicts this`, ...why(images, asked, place, choose)),
    ...(logits.length ? [make("details", {}, make("summary", {}, "Logits of the parts of every method"), ...logits)] : []),
  );
  card.hidden = false;
}
