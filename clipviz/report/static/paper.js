// On paper all charts are drawn before the sheets are laid out, as nobody scrolls there: as wide as a column, and so
// high that sheets are filled to their foot.

const SHEET = 1000; // pixels between the margins of a sheet, and a little less
const LOWEST = { chart: 0.8, picture: 0.5, alone: 0.4 }; // of its height on a screen; of what is alone on its sheet and higher than that
const HIGHEST = 2.2;
const PAPER_SCALES = [0.66, 0.52]; // of charts that stand alone in a row, and two by two: panels have room beside each other

// Figures side by side, with what must stay with them above, the charts or pictures in them, and the height that can change.
function paperRows() {
  return [...document.querySelectorAll(".figures, figure.single")].flatMap((group) => {
    const view = group.closest(".view");
    const start = view?.previousElementSibling.matches("h2") ? view.parentElement : view;
    const figures = view ? [...group.children].filter((figure) => !figure.hidden) : [group];
    const across = !view || group.matches(".one, .wide") ? 1 : 2;
    const rows = [];
    for (let i = 0; i < figures.length; i += across) {
      const own = figures.slice(i, i + across);
      const [charts, pictures] = [".chart", "img"].map((what) => own.flatMap((figure) => [...figure.querySelectorAll(what)]));
      const heights = [...charts.map((node) => sizeOnPaper(node, across)), ...pictures.map((node) => node.getBoundingClientRect().height)];
      const lowest = charts.length ? LOWEST.chart : LOWEST.picture;
      rows.push({ start: i ? own[0] : (start ?? group), figures: own, charts, pictures, area: Math.max(0, ...heights), lowest });
    }
    return rows;
  });
}

// Makes room for a chart as it is on a screen; returns pixels of the sheet that its height can do without.
function sizeOnPaper(node, across) {
  const { data } = specs[node.id];
  const layout = structuredClone(specs[node.id].layout);
  const scale = PAPER_SCALES[across - 1];
  const area = areaOf(layout);
  const width = Math.floor(node.parentElement.clientWidth / scale);
  Object.assign(node.style, { zoom: scale, height: `${fittedLayout(layout, data, width, area).height}px` });
  Object.assign(node.dataset, { width, area });
  return scale * area;
}

// Where the sheet begins that a piece of text above `end` is on; with a heading just before it, or with the head of its table.
function nextSheet(sheet, piece, before, end) {
  const { top, bottom } = piece.getBoundingClientRect();
  if (bottom > end || bottom <= sheet + SHEET) return sheet;
  return before?.matches("h2, h3, h4") ? before.getBoundingClientRect().top : top - (piece.closest("table")?.tHead?.offsetHeight ?? 0);
}

// Breaks go where the next row does not fit even if all are made lower; what is left of a sheet makes its charts higher.
function fillSheets(rows) {
  let sheet = document.body.getBoundingClientRect().top;
  let [own, foot] = [[], sheet];
  const pieces = [...document.querySelectorAll("main :is(h2, h3, h4, p, pre, li, tr, figure)")].filter((node) => node.offsetHeight);
  const heightOf = (rows, share) => rows.reduce((sum, row) => sum + share(row) * row.area, 0);
  const fits = (rows, end) => end - sheet - heightOf(rows, ({ lowest }) => 1 - lowest) <= SHEET;
  // Has the sheet end with the rows on it, if they need not be more than `most` times as high for it.
  const fill = (most) => {
    const area = heightOf(own, () => 1);
    const stretch = Math.max(LOWEST.alone, Math.min(most, (SHEET - (foot - sheet) + area) / area));
    own.forEach((row) => (row.stretch = stretch));
  };
  for (const row of rows) {
    const { top } = row.start.getBoundingClientRect();
    const bottom = Math.max(...row.figures.map((figure) => figure.getBoundingClientRect().bottom));
    if (foot <= sheet + SHEET && top > sheet + SHEET) {
      fill(1); // between the two is a text or a card, which goes on by itself
      own = [];
      sheet = pieces.reduce((sheet, piece, i) => nextSheet(sheet, piece, pieces[i - 1], top), sheet);
    }
    if (top > sheet && !fits([...own, row], bottom)) {
      fill(HIGHEST);
      row.start.style.breakBefore = "page";
      [sheet, own] = [top, []];
    }
    own.push(row);
    foot = bottom;
  }
  fill(1);
}

function drawOnPaper(groups) {
  if (!groups.length || !window.Plotly) return;
  const print = [...document.styleSheets[0].cssRules].find((rule) => rule.media?.mediaText === "print").media;
  const { style, dataset } = document.body;
  print.mediaText = "all"; // the sheet as it will be, to be measured
  style.width = "182mm";
  dataset.jpThemeLight = "true";
  const rows = paperRows();
  fillSheets(rows);
  for (const { charts, pictures, area, stretch } of rows) {
    for (const node of pictures) node.style.maxHeight = `${stretch * area}px`;
    for (const node of charts) {
      const { zoom } = node.style;
      Object.assign(node.style, { zoom: "", height: "" });
      drawChart(node, Number(node.dataset.width), stretch * node.dataset.area);
      node.style.zoom = zoom;
    }
  }
  groups.forEach(shareAxes);
  style.width = "";
  print.mediaText = "print";
}

function leavePaper() {
  const nodes = document.querySelectorAll("section, figure, .chart, .figures img");
  for (const { style } of nodes) Object.assign(style, { zoom: "", height: "", maxHeight: "", breakBefore: "" });
}
