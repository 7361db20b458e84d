// Explore: filter, table or confusion -> images -> card. What is asked for is `asked`; every change of it draws anew.

const PAGE = 60;

async function explore() {
  const root = document.querySelector(".explorer");
  const text = root ? await unpacked("packed-images") : "";
  if (!text) return;
  const images = new Images(JSON.parse(text));
  const filters = makeFilters(images);
  const at = (id) => document.getElementById(id);
  const best = images.runs.findIndex((run) => run.isTrained);
  const asked = { filter: "all", query: "", pair: null, cell: null, points: null, run: images.runs[Math.max(best, 0)], place: null, page: 0 };
  let found = [];

  const sheet = numbers(images.sheet);
  const picture = await createImageBitmap(new Blob([sheet], { type: "image/jpeg" }));
  images.picture = picture;
  const gallery = new Model({ sheet: new DataView(sheet.buffer), side: images.side, columns: images.columns, ids: [], places: [], captions: [], label: "", empty: "No image matches. Use fewer filters at once.", selected: [] });
  const matrix = new Model({ counts: null, names: images.classes, labels: images.labels, title: "", selected: [] });
  const overlay = new Model({ image: picture, piece: null, rows: [], maps: new DataView(new ArrayBuffer(0)), side: 148, opacity: 0.7, contour: false, colors: viewOf(numbers(images.colors)), partColors: viewOf(numbers(images.partColors)), empty: "" });
  const card = at("card");
  card.looks = make("div");
  root.hidden = false;
  canvases.gallery({ model: gallery, el: at("gallery") });
  canvases.overlay({ model: overlayModel(overlay), el: card.looks });

  const countsOf = (run) => {
    const counts = new Uint32Array(images.classes.length ** 2);
    const values = numbers(run.counts);
    numbers(run.cells).forEach((cell, i) => (counts[cell] = values[i]));
    return counts;
  };
  if (images.hasTargets) {
    matrix.fill({ counts: viewOf(countsOf(asked.run)), title: matrixTitle(asked.run) });
    canvases.matrix({ model: matrix, el: at("matrix") });
    matrix.on("change:selected", () => {
      if (matrix.get("selected").length === 2) ask({ cell: matrix.get("selected"), pair: null });
    });
  }
  at("fixes").hidden = images.runs.length < 2 || (!images.hasTargets && images.runs.length > 2);
  if (!at("fixes").hidden) at("fixes").querySelector(".scroll").append(outcomeTable(images, filters, ask));
  if (!images.hasTargets) at("fixes").querySelector("summary span").textContent = "Where the two runs agree";
  at("run").parentElement.hidden = images.runs.length < 2;

  const scatter = new Model({ groups: [], names: images.classes, chosen: [], n_chosen: 0, epoch: -1, n_epochs: 1, title: "", axes: ["", ""] });
  showPlane(asked.run);
  canvases.scatter({ model: scatter, el: at("scatter") });
  scatter.on("change:chosen", () => {
    const chosen = scatter.get("chosen");
    if (chosen.length) ask({ points: placesOf(images, asked.run, chosen, scatter.get("epoch")) });
  });
  at("epoch").addEventListener("input", (event) => turnPlane(Number(event.target.value)));

  // Prototypes and images of the run that is asked about, where it has some.
  function showPlane(run) {
    at("plane").hidden = !run.plane;
    if (!run.plane) return;
    const { places, group, label, marks, n_epochs, groups, axes } = run.plane;
    scatter.fill({ places: viewOf(numbers(places)), group: viewOf(numbers(group)), label: viewOf(numbers(label)), marks: viewOf(numbers(marks)), n_epochs, groups, axes, chosen: [], n_chosen: 0 });
    at("epoch").max = n_epochs - 2;
    turnPlane((at("epoch").value = n_epochs - 2));
  }

  function turnPlane(epoch) {
    scatter.fill({ epoch, title: epoch < 0 ? "before training" : `after epoch ${epoch}` });
  }

  fillSelect(at("filter"), Object.entries(filters).map(([name, { run, title }]) => [name, title, run?.label]));
  fillSelect(at("run"), images.runs.map((run, r) => [r, run.label]));

  // Captions and the matrix are those of the run that is asked about.
  function ask(more) {
    const run = more.run ?? more.pair?.[0] ?? filters[more.filter]?.run ?? asked.run;
    if (images.hasTargets && run !== asked.run) matrix.fill({ counts: viewOf(countsOf(run)), title: matrixTitle(run) });
    if (run !== asked.run) showPlane(run);
    Object.assign(asked, { points: null }, more, { run, page: 0 });
    if (asked.points) Object.assign(asked, { filter: "all", query: "", pair: null, cell: null });
    else if (scatter.get("chosen").length) scatter.fill({ chosen: [], n_chosen: 0 });
    at("run").value = images.runs.indexOf(run);
    found = choose(images, filters, asked);
    at("filter").value = asked.filter;
    at("query").value = asked.query;
    if (!asked.cell && matrix.get("selected").length) matrix.set("selected", []);
    for (const button of root.querySelectorAll("#fixes button")) button.setAttribute("aria-pressed", `${button.isFor(asked)}`);
    showFound();
  }

  function showFound() {
    const shown = found.slice(asked.page * PAGE, (asked.page + 1) * PAGE);
    const ids = shown.map((place) => `eval/${images.index[place]}`);
    gallery.fill({ ids, places: shown, captions: shown.map((place) => images.caption(asked.run, place)), label: whatIsAsked(images, filters, asked) });
    const counted = asked.cell ? countsOf(asked.run)[asked.cell[0] * images.classes.length + asked.cell[1]] : found.length;
    const others = counted > found.length && asked.filter === "all" && !asked.query ? `; ${counted - found.length} more are not on this page` : "";
    at("count").textContent = found.length ? `${asked.page * PAGE + 1}–${asked.page * PAGE + shown.length} of ${found.length}${others}` : `no images${others}`;
    at("back").disabled = asked.page === 0;
    at("next").disabled = (asked.page + 1) * PAGE >= found.length;
  }

  function turn(pages) {
    asked.page += pages;
    showFound();
  }

  function show(place, moves = true) {
    asked.place = place;
    const id = `eval/${images.index[place]}`;
    if (gallery.get("selected")[0] !== id) gallery.set("selected", [id]);
    fillCard(card, images, asked, place, overlay, [stepButton("previous image", -1), stepButton("next image", 1)], askWhy);
    if (location.protocol !== "about:") history.replaceState(null, "", `#image=${id}`); // a view within a page has no address
    if (moves) card.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  // Another method: the images stay those that were asked for.
  function askWhy(run) {
    ask({ run, pair: asked.pair, filter: asked.filter });
    show(asked.place, false);
    card.querySelector(".methods [aria-pressed=true]").focus({ preventScroll: true });
  }

  function stepButton(name, by) {
    const button = make("button", { type: "button" }, name);
    button.disabled = !(found[found.indexOf(asked.place) + by] >= 0);
    button.addEventListener("click", () => {
      step(by);
      [...card.querySelectorAll("header button")].find((other) => other.textContent === name && !other.disabled)?.focus();
    });
    return button;
  }

  function step(by) {
    const next = found[found.indexOf(asked.place) + by];
    if (next === undefined) return;
    asked.page = Math.floor(found.indexOf(next) / PAGE);
    if (!gallery.get("places").includes(next)) showFound();
    show(next, false);
  }

  function readAddress() {
    const address = location.hash || `#image=${at("content").dataset.selected}`; // where some programs write %2F for /
    const [, number] = /^#image(?:=|%3D)eval(?:\/|%2F)(\d+)$/i.exec(address) || [];
    const place = number === undefined ? -1 : images.index.indexOf(Number(number));
    if (place < 0) return;
    if (!found.includes(place)) ask({ filter: "all", query: "", pair: null, cell: null });
    asked.page = Math.floor(found.indexOf(place) / PAGE);
    showFound();
    show(place);
  }

  gallery.on("change:selected", () => {
    const [id] = gallery.get("selected");
    const place = id ? images.index.indexOf(Number(id.split("/")[1])) : -1;
    if (place >= 0 && place !== asked.place) show(place);
  });
  at("filter").addEventListener("change", (event) => ask({ filter: event.target.value, pair: null, cell: null }));
  at("query").addEventListener("input", (event) => ask({ query: event.target.value }));
  at("run").addEventListener("change", (event) => {
    ask({ run: images.runs[event.target.value] });
    if (asked.place !== null) show(asked.place, false);
  });
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  at("reset").addEventListener("click", (event) => {
    event.preventDefault();
    ask({ filter: "all", query: "", pair: null, cell: null });
  });
  at("back").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    const isTaken = event.target.closest("input, select, canvas, [role=listbox], .js-plotly-plot, .scroll, pre") || event.altKey || event.ctrlKey || event.metaKey;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (isTaken || !by || asked.place === null) return;
    event.preventDefault();
    step(by);
  });
  addEventListener("hashchange", readAddress);
  ask({});
  readAddress();
}

// Images of points of the plane; of prototypes, those that the run gives their classes at that epoch.
function placesOf(images, run, chosen, epoch) {
  const [index, label] = [numbers(run.plane.index), numbers(run.plane.label)];
  const shown = new Set(chosen.map((i) => index[i]).filter((number) => number >= 0));
  const labels = new Set(chosen.map((i) => label[i]));
  const k = run.epochs.findLastIndex((known) => known <= epoch);
  const isMeant = (place) => (shown.size ? shown.has(images.index[place]) : labels.has(images.said(run, place, Math.max(k, 0))?.label));
  return new Set([...images.index.keys()].filter(isMeant));
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const matrixTitle = (run) => `${run.label}: confusion matrix, last epoch`;

// The overlay's maps are bytes here, where a kernel sends a DataView.
function overlayModel(overlay) {
  const set = overlay.set.bind(overlay);
  overlay.set = (name, value) => set(name, value instanceof Uint8Array ? viewOf(value) : value);
  return overlay;
}

function fillSelect(select, options) {
  const groups = new Map();
  for (const [value, title, group] of options) {
    const option = make("option", { value }, title);
    if (!group) select.append(option);
    else {
      if (!groups.has(group)) groups.set(group, select.appendChild(make("optgroup", { label: group })));
      groups.get(group).append(option);
    }
  }
}

function whatIsAsked(images, filters, asked) {
  const parts = [filters[asked.filter].title];
  if (asked.pair) parts[0] = `${asked.pair[0].label} right, ${asked.pair[1].label} wrong`;
  if (asked.cell) parts[0] = `${asked.run.label}: ${images.className(asked.cell[0])} predicted as ${images.className(asked.cell[1])}`;
  if (asked.points) parts[0] = "images of the selected points";
  if (asked.query) parts.push(`“${asked.query}”`);
  return parts.join(", ");
}

// Buttons with how many images they list. Of two runs: who is right, both ways, or without labels whether they agree; of
// more, for each pair, what the row has right and the column wrong.
function outcomeTable(images, filters, ask) {
  const { runs } = images;
  const button = (name, { pair = null, filter = "all" }) => {
    const asked = { pair, filter, cell: null, query: "" };
    const count = choose(images, filters, asked).length;
    const made = make("button", { type: "button", "aria-label": `${count} image${count === 1 ? "" : "s"}: ${name}` }, `${count}`);
    made.disabled = !count;
    made.isFor = (now) => !now.cell && !now.points && now.filter === filter && now.pair?.[0] === pair?.[0] && now.pair?.[1] === pair?.[1];
    made.addEventListener("click", () => ask(asked));
    return make("td", { class: "number" }, made);
  };
  const fixed = (right, wrong) => button(`${right.label} right, ${wrong.label} wrong`, { pair: [right, wrong] });
  if (!images.hasTargets)
    return tableOf(["", "the same class", "another class"], [["both runs", button("the same class", { filter: "agree" }), button("another class", { filter: "disagree" })]]);
  if (runs.length === 2) {
    const [a, b] = runs;
    const rows = [
      [`${a.label} right`, button("both right", { filter: "right" }), fixed(a, b)],
      [`${a.label} wrong`, fixed(b, a), button("both wrong", { filter: "wrong" })],
    ];
    return tableOf(["", `${b.label} right`, `${b.label} wrong`], rows);
  }
  const rows = runs.map((right) => [`${right.label} right`, ...runs.map((wrong) => (right === wrong ? make("td", {}, "") : fixed(right, wrong)))]);
  return tableOf(["", ...runs.map((run) => `${run.label} wrong`)], rows);
}
