// Plotly charts: unpacked once, drawn when they come near, stacked where the page is narrow, recolored where it is dark.

const NARROW = 640; // below it, panels of a chart stand one below the other
const PANEL = 210; // height of one of them, and the room between two
const BETWEEN = 84;
const CHART_CONFIG = { displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

let specs = {}; // charts by their ids
const rooms = {}; // left and right of the charts of one view that are as wide: [pixels, pixels]
const pen = document.createElement("canvas").getContext("2d");

async function loadCharts() {
  const [charts, source] = await Promise.all(["packed-charts", "packed-plotly"].map(unpacked));
  specs = JSON.parse(charts);
  const script = document.createElement("script");
  script.textContent = source; // its hash is in the page's policy
  document.head.append(script);
}

// Colors of the data as the theme shows them; a copy.
function recolored(value, key = "") {
  if (Array.isArray(value)) return value.map((item) => recolored(item, key));
  if (typeof value === "string" && key.endsWith("color")) {
    const color = value === "white" ? "#ffffff" : value;
    return /^#[0-9a-f]{3,6}$/i.test(color) ? solid(document.body, color) : value;
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, recolored(inner, name)]));
}

// Rows that a horizontal legend takes: its entries stand in columns as wide as the widest.
function legendRows(data, font, width) {
  const isShown = ({ name, showlegend, x }) => name && showlegend !== false && x?.length !== 0;
  const names = new Set(data.filter(isShown).map((trace) => trace.name));
  pen.font = `${font.size}px ${font.family}`;
  const widths = [...names].map((name) => 45 + pen.measureText(name.replace(/&#?\w+;/g, "&")).width);
  if (!widths.length) return 0;
  const total = widths.reduce((sum, width) => sum + width, 0);
  return total < width ? 1 : Math.ceil(widths.length / Math.max(1, Math.floor((width + 5) / Math.max(...widths))));
}

// As many letters of a label as a narrow chart has room for, of both its ends; "&lt;" is one of them.
function cut(text, most) {
  const letters = text.match(/&#?\w+;|./gsu) || [];
  const half = Math.floor((most - 1) / 2);
  return letters.length <= most ? text : `${letters.slice(0, most - 1 - half).join("")}…${letters.slice(-half).join("")}`;
}

// A name, or both names of a pair "true → predicted", which one cut would make look like a single name.
function cutEach(text, width) {
  const names = text.split(" → ");
  return names.map((name) => cut(name, Math.floor(width / (names.length > 1 ? 50 : 32)))).join(" → ");
}

const axesOf = (layout) =>
  Object.keys(layout)
    .filter((name) => /^xaxis\d*$/.test(name))
    .map((name) => [layout[name], layout[name.replace("x", "y")]]);

// One panel below the other, in the order of reading; returns the height of all.
function stack(layout, panels, height, between) {
  const all = panels.length * height + (panels.length - 1) * between;
  const titles = (layout.annotations || []).filter((note) => note.xref === "paper" && note.yref === "paper");
  panels.forEach(([x, y], i) => {
    const high = 1 - (i * (height + between)) / all;
    x.domain = [0, 1];
    const { tickvals, ticktext } = panels[0][1]; // of an axis that all panels shared
    Object.assign(y, { domain: [high - height / all, high], showticklabels: true }, ticktext && y.matches ? { tickvals, ticktext } : {});
    if (titles[i]) Object.assign(titles[i], { x: 0, xanchor: "left", y: high });
  });
  return all;
}

const areaOf = ({ height, margin }) => height - margin.t - margin.b;

// What a narrow chart leaves out or does otherwise; returns its height without margins.
function narrowed(layout, data, width) {
  const isMatrix = data.some((trace) => trace.type === "heatmap");
  let height = areaOf(layout);
  for (const axis of axesOf(layout).flat()) {
    if (axis.ticktext) axis.ticktext = axis.ticktext.map((text) => cutEach(text, width));
    if (axis.visible === false && axis.range && axis.range[0] < axis.range[1])
      axis.range = [axis.range[0] - 0.35, axis.range[1] + 0.35]; // room for the names beside a flow
  }
  for (const note of layout.annotations || []) {
    note.font = { ...note.font, size: 12 };
    if (isMatrix && note.xref === "paper") Object.assign(note, { x: 1, xanchor: "right" }); // there is room above the names on the left
    const beside = note.xshift ? 26 : 36; // a flow or a line; above a point, where two names are a quarter of a width apart
    if ((note.xref ?? "x") === "x" && (note.xshift || note.yshift)) note.text = cut(note.text, Math.floor(width / beside));
  }
  for (const trace of data) if (trace.colorbar && trace.colorbar.orientation !== "h") trace.showscale = false;
  const panels = axesOf(layout).filter(([x]) => x.domain);
  const isBeside = panels.some(([x]) => `${x.domain}` !== `${panels[0][0].domain}`);
  const most = Math.max(...panels.map(([, y]) => y.ticktext?.length ?? 0)); // names of bars, each of which has its own
  const each = isMatrix ? 0.6 * width : Math.max(PANEL, (layout.font.size + 2) * most);
  if (panels.length > 1 && isBeside) height = stack(layout, panels, each, isMatrix ? 130 : BETWEEN);
  return height;
}

// Of the names beside and aslant below a matrix, as many as have room; `wide` and `high` are those of the plot area.
function thinNames(axes, font, wide, high) {
  const thin = (axis, room) => {
    const every = Math.ceil(((axis.ticktext?.length ?? 0) * (font.size + 2)) / Math.max(room, 1)) || 1;
    for (const key of ["tickvals", "ticktext"]) axis[key] = axis[key]?.filter((_, i) => i % every === 0);
  };
  pen.font = `${font.size}px ${font.family}`;
  const widest = Math.max(0, ...axes.flatMap(([, y]) => y.ticktext || []).map((text) => pen.measureText(text).width));
  for (const [x, y] of axes.filter(([x]) => x.tickangle)) {
    thin(x, (wide - widest) * (x.domain[1] - x.domain[0]));
    thin(y, high * (y.domain[1] - y.domain[0]));
  }
}

// The layout of a chart for a width in pixels: no title, which the page says, and room for what is left, which plotly
// would else find to be missing when all is drawn, and draw all again. `area` is its height without margins.
function fittedLayout(layout, data, width, area, [l, r] = [0, 0]) {
  const axes = axesOf(layout);
  const isBare = axes.every(([, y]) => y.visible === false);
  const margin = { ...layout.margin, l: Math.max(l, Math.min(isBare ? 50 : 68, 0.175 * width)), r: Math.max(r, layout.margin.r) };
  const rows = legendRows(data, layout.font, width - margin.l - margin.r);
  margin.t = (rows && 4 + 20 * rows) + (axes.length > 1 ? 38 : isBare ? 10 : 30);
  const height = area + margin.t + margin.b;
  for (const axis of axes.flat()) axis.ticklabeloverflow = "allow"; // there is room: none need be measured to be hidden
  const hasBar = data.some((trace) => trace.colorbar && trace.colorbar.orientation !== "h" && trace.showscale !== false);
  thinNames(axes, layout.font, width - margin.r - (hasBar ? 92 : 12), area);
  Object.assign(layout, { title: undefined, width, height, margin });
  Object.assign(layout.legend, { x: 0, xref: "container", xanchor: "left", y: 1 - 4 / height });
  return layout;
}

// A chart that is loaded, at once; its panels stay side by side where `area` says how high they are.
function drawChart(node, width, area) {
  const { data, layout } = recolored(specs[node.id]);
  const own = area ?? (width < NARROW ? narrowed(layout, data, width) : areaOf(layout));
  const kind = `${node.id.replace(/-\d+$/, "")} ${width}`;
  node.dataset.drawn = width;
  const drawn = Plotly.newPlot(node, data, fittedLayout(layout, data, width, own, rooms[kind]), CHART_CONFIG);
  rooms[kind] = ["l", "r"].map((side) => Math.ceil(node._fullLayout._size[side]));
  return drawn;
}

// One range for the axes that plotly would fit to each run's own values.
function shareAxes(group) {
  const nodes = [...group.querySelectorAll("figure:not([hidden]) .chart[data-drawn]")];
  if (!("sameAxes" in group.dataset) || nodes.length < 2) return;
  const layouts = nodes.map((node) => node._fullLayout);
  const ranges = {};
  for (const name of Object.keys(layouts[0]).filter((name) => /^[xy]axis\d*$/.test(name))) {
    const axes = layouts.map((layout) => layout[name]);
    if (!axes.every((axis) => axis && axis.type === "linear" && axis.autorange === true && !axis.matches)) continue;
    ranges[`${name}.range`] = [Math.min(...axes.map((axis) => axis.range[0])), Math.max(...axes.map((axis) => axis.range[1]))];
  }
  if (Object.keys(ranges).length) nodes.forEach((node) => Plotly.relayout(node, structuredClone(ranges)));
}

// `first`: what is more urgent than charts, whether it succeeds or not.
function drawWhenNear(first) {
  const groups = [...document.querySelectorAll(".figures, figure.single")].filter((group) => group.querySelector(".chart"));
  const near = new Set();
  const turns = new Map(); // groups are drawn one after the other, so that the page answers meanwhile
  let isOnPaper = false;
  let last = new Promise((done) => first.finally(done)).then(loadCharts);

  const drawGroup = async (group, redraws) => {
    const isStale = (node) => node.clientWidth && (redraws || node.dataset.drawn !== `${Math.floor(node.clientWidth)}`);
    const shown = [...group.querySelectorAll("figure:not([hidden]) .chart")];
    let stale = shown.filter(isStale);
    if (stale.length && "sameAxes" in group.dataset) {
      stale = shown; // one range for all of them, and for those left out when they come back
      for (const node of group.querySelectorAll("figure[hidden] .chart")) delete node.dataset.drawn;
    }
    for (const node of stale) if (!isOnPaper && node.clientWidth) await drawChart(node, Math.floor(node.clientWidth));
    if (!isOnPaper) shareAxes(group);
  };
  const draw = (group, redraws) => {
    if (turns.has(group) && !redraws) return;
    turns.set(group, true);
    last = last.then(() => {
      turns.delete(group);
      return drawGroup(group, redraws);
    });
  };
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting || near.has(target)) continue;
        near.add(target);
        fitted(target, () => draw(target));
      }
    },
    { rootMargin: "600px 0px" },
  );
  groups.forEach((group) => seen.observe(group));
  const again = (redraws) => near.forEach((group) => draw(group, redraws));
  addEventListener("beforeprint", () => {
    isOnPaper = true;
    drawOnPaper(groups);
  });
  addEventListener("afterprint", () => {
    isOnPaper = false;
    leavePaper();
  });
  return { again, settled: () => last };
}
