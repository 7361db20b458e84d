// Confusion matrix: rows are true classes, columns predictions; a click or Enter chooses a cell.

const [MOST, FEW] = [40, 24]; // classes that are drawn at once, and of how many every name can be read

function render({ model, el }) {
  const size = 420;
  const margin = 118;
  const ratio = window.devicePixelRatio || 1;
  const canvas = make("canvas", { role: "application", tabindex: "0", width: size * ratio, height: size * ratio });
  canvas.style.width = `${size}px`;
  const readout = make("div", { class: "clipviz-readout", "aria-live": "polite" });
  const title = make("div", { class: "clipviz-caption" });
  const field = make("input", { type: "search", placeholder: "search classes", "aria-label": "search classes of the matrix" });
  const note = make("div", { "aria-live": "polite" });
  const root = make("div", { class: "clipviz clipviz-matrix" }, title, field, note, canvas, readout);
  el.append(root);
  const context = canvas.getContext("2d");
  let at = null; // the cell under the mouse or the keyboard

  let search = ""; // classes are searched for where there are too many to be named
  let counts = new Uint32Array();
  let totals = []; // images of each true class
  let shown = []; // the classes that are drawn, by number
  const shades = make("canvas");

  const n = () => shown.length;
  const cellSize = () => (size - margin - 4) / Math.max(1, n());

  const read = () => {
    counts = new Uint32Array(bytesOf(model, "counts").slice().buffer);
    const all = model.get("names").length;
    totals = Array.from({ length: all }, (_, row) => counts.subarray(row * all, (row + 1) * all).reduce((a, b) => a + b, 0));
    at = null;
    arrange();
  };

  // All classes; of many, those that match and what they are confused with, or those that are confused most.
  const arrange = () => {
    const names = model.get("names");
    const all = names.length;
    field.hidden = all <= MOST;
    if (all <= MOST) shown = names.map((_, i) => i);
    else {
      const query = search.trim().toLowerCase();
      const found = query ? names.flatMap((name, i) => (name.toLowerCase().includes(query) ? [i] : [])).slice(0, FEW) : [];
      const chosen = new Set([...model.get("selected"), ...found]);
      const asked = new Set(query ? found : names.keys());
      const pairs = [];
      for (let row = 0; row < all; row++)
        for (let column = 0; column < all; column++) {
          const count = counts[row * all + column];
          if (count && row !== column && (asked.has(row) || asked.has(column))) pairs.push([count, row, column]);
        }
      pairs.sort((one, other) => other[0] - one[0]);
      for (const [, row, column] of pairs) {
        if (chosen.size + !chosen.has(row) + !chosen.has(column) > FEW) break;
        chosen.add(row).add(column);
      }
      shown = [...chosen].sort((i, j) => i - j);
      note.textContent = query
        ? `${found.length ? `${found.length}${found.length === FEW ? " or more" : ""} found, with the classes they are confused with` : "no class has this name"}`
        : `${n()} of ${all} classes, those confused most`;
    }
    note.hidden = field.hidden;
    shade();
    draw();
  };

  // A pixel for each cell: drawn once, however many there are.
  const shade = () => {
    const dark = isDark();
    const all = totals.length;
    shades.width = shades.height = Math.max(1, n());
    const pen = shades.getContext("2d");
    shown.forEach((row, y) =>
      shown.forEach((column, x) => {
        const share = counts[row * all + column] / Math.max(1, totals[row]);
        const lightness = dark ? 17 + 58 * share : 96 - 62 * share;
        pen.fillStyle = `hsl(208, ${(dark ? 12 : 60) + (dark ? 60 : 20) * share}%, ${lightness}%)`;
        pen.fillRect(x, y, 1, 1);
      }),
    );
  };

  // As much of a name as fits, cut in the middle: both of its ends tell classes apart.
  const fitting = (name, room) => {
    const letters = [...name]; // an emoji is one, and has two halves
    let text = name;
    for (let keep = Math.min(letters.length, 60); context.measureText(text).width > room && keep > 2; keep--)
      text = [...letters.slice(0, Math.ceil(keep / 2)), "…", ...letters.slice(-Math.floor(keep / 2))].join("").replace("……", "…");
    return text;
  };

  const draw = () => {
    const cell = cellSize();
    const style = getComputedStyle(root);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size, size);
    title.textContent = model.get("title");
    canvas.setAttribute("aria-label", `${model.get("title")}; arrow keys move, Enter chooses`);
    context.imageSmoothingEnabled = false;
    if (n()) context.drawImage(shades, margin, margin, n() * cell, n() * cell);
    context.fillStyle = style.color;
    context.font = `11px ${style.fontFamily}`;
    const step = Math.ceil(12 / Math.max(cell, 0.1));
    context.textAlign = "right";
    context.fillText("predicted →", margin - 6, margin - 26);
    context.fillText("true class ↓", margin - 6, margin - 10);
    context.textBaseline = "middle";
    for (let i = 0; i < n(); i += step) {
      const name = fitting(model.get("labels")[shown[i]] ?? model.get("names")[shown[i]], margin - 8);
      const middle = margin + (i + 0.5) * cell;
      context.textAlign = "right";
      context.fillText(name, margin - 5, middle);
      context.save();
      context.translate(middle, margin - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(name, 0, 0);
      context.restore();
    }
    context.textBaseline = "alphabetic";
    for (const [cellAt, color, width] of [[model.get("selected"), solid(root, "#D55E00"), 2.5], [at, style.color, 1]]) {
      const [y, x] = (cellAt || []).map((number) => shown.indexOf(number));
      if (!(x >= 0 && y >= 0)) continue;
      context.strokeStyle = color;
      context.lineWidth = width;
      context.strokeRect(margin + x * cell - 1, margin + y * cell - 1, cell + 1.5, cell + 1.5);
    }
    say();
  };

  const say = () => {
    const names = model.get("names");
    const cell = at || (model.get("selected").length === 2 ? model.get("selected") : null);
    if (!cell) return (readout.textContent = "Point at a cell; click it to see its images.");
    const [row, column] = cell;
    const count = counts[row * names.length + column];
    readout.textContent = `${count} of ${totals[row]} image${totals[row] === 1 ? "" : "s"} of “${names[row]}” predicted as “${names[column]}”`;
  };

  const find = (event) => {
    const [x, y] = placeOn(canvas, event, size);
    const column = Math.floor((x - margin) / cellSize());
    const row = Math.floor((y - margin) / cellSize());
    return row >= 0 && column >= 0 && row < n() && column < n() ? [shown[row], shown[column]] : null;
  };
  const choose = (cell) => {
    if (!cell) return;
    model.set("selected", cell);
    model.save_changes();
  };
  canvas.addEventListener("mousemove", (event) => {
    at = find(event);
    draw();
  });
  canvas.addEventListener("mouseleave", () => {
    at = null;
    draw();
  });
  canvas.addEventListener("click", (event) => choose(find(event)));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key in steps) {
      const from = at ? at.map((number) => shown.indexOf(number)) : [0, -1];
      at = from.map((place, i) => shown[Math.min(n() - 1, Math.max(0, place + steps[event.key][i]))]);
      draw();
    } else if (event.key === "Enter" || event.key === " ") choose(at);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  field.addEventListener("input", () => {
    search = field.value;
    at = null;
    arrange();
  });
  field.addEventListener("keydown", (event) => event.stopPropagation());

  // Drawn once it is on the page: there is no font and no color before.
  const stops = [
    listen(model, ["counts", "names"], later(read)),
    listen(model, ["title"], draw),
    listen(model, ["selected"], () => arrange()),
    themed(arrange),
    fitted(root, draw),
  ];
  read();
  return () => stops.forEach((stop) => stop());
}

export default { render };
