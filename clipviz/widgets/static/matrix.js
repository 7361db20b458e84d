// Confusion matrix: rows are true classes, columns predictions; a click or Enter chooses a cell.

function render({ model, el }) {
  const size = 420;
  const margin = 118;
  const ratio = window.devicePixelRatio || 1;
  const canvas = make("canvas", { role: "grid", tabindex: "0", width: size * ratio, height: size * ratio });
  canvas.style.width = canvas.style.height = `${size}px`;
  const readout = make("div", { class: "clipviz-readout", "aria-live": "polite" });
  const title = make("div", { class: "clipviz-caption" });
  const root = make("div", { class: "clipviz clipviz-matrix" }, title, canvas, readout);
  el.append(root);
  const context = canvas.getContext("2d");
  let at = null; // the cell under the mouse or the keyboard

  const n = () => model.get("names").length;
  const counts = () => {
    const bytes = bytesOf(model, "counts").slice();
    return new Uint32Array(bytes.buffer);
  };
  const cellSize = () => (size - margin - 4) / Math.max(1, n());

  // As much of a name as fits, cut in the middle: both of its ends tell classes apart.
  const fitting = (name, room) => {
    let text = name;
    for (let keep = Math.min(name.length, 60); context.measureText(text).width > room && keep > 2; keep--)
      text = `${name.slice(0, Math.ceil(keep / 2))}…${name.slice(-Math.floor(keep / 2))}`;
    return text;
  };

  const draw = () => {
    const names = model.get("names");
    const values = counts();
    const cell = cellSize();
    const style = getComputedStyle(root);
    const dark = isDark();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size, size);
    title.textContent = model.get("title");
    canvas.setAttribute("aria-label", `${model.get("title")}; arrow keys move, Enter chooses`);
    for (let row = 0; row < names.length; row++) {
      let total = 0;
      for (let column = 0; column < names.length; column++) total += values[row * names.length + column];
      for (let column = 0; column < names.length; column++) {
        const share = values[row * names.length + column] / Math.max(1, total);
        const lightness = dark ? 17 + 58 * share : 96 - 62 * share;
        context.fillStyle = `hsl(208, ${(dark ? 12 : 60) + (dark ? 60 : 20) * share}%, ${lightness}%)`;
        context.fillRect(margin + column * cell, margin + row * cell, Math.max(1, cell - 0.5), Math.max(1, cell - 0.5));
      }
    }
    context.fillStyle = style.color;
    context.font = `11px ${style.fontFamily}`;
    const step = Math.ceil(12 / Math.max(cell, 0.1));
    context.textAlign = "right";
    context.fillText("predicted →", margin - 6, margin - 26);
    context.fillText("true class ↓", margin - 6, margin - 10);
    context.textBaseline = "middle";
    for (let i = 0; i < names.length; i += step) {
      const name = fitting(model.get("labels")[i] ?? names[i], margin - 8);
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
      if (!cellAt || cellAt.length !== 2) continue;
      context.strokeStyle = color;
      context.lineWidth = width;
      context.strokeRect(margin + cellAt[1] * cell - 1, margin + cellAt[0] * cell - 1, cell + 1.5, cell + 1.5);
    }
    say(values, names);
  };

  const say = (values, names) => {
    const cell = at || (model.get("selected").length === 2 ? model.get("selected") : null);
    if (!cell) return (readout.textContent = "Point at a cell; click it to see its images.");
    const [row, column] = cell;
    let total = 0;
    for (let i = 0; i < names.length; i++) total += values[row * names.length + i];
    const count = values[row * names.length + column];
    readout.textContent = `${count} of ${total} images of “${names[row]}” are called “${names[column]}”`;
  };

  const find = (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - margin) / cellSize());
    const row = Math.floor((event.clientY - box.top - margin) / cellSize());
    return row >= 0 && column >= 0 && row < n() && column < n() ? [row, column] : null;
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
      const from = at || [0, -1];
      const clamp = (value) => Math.min(n() - 1, Math.max(0, value));
      at = [clamp(from[0] + steps[event.key][0]), clamp(from[1] + steps[event.key][1])];
      draw();
    } else if (event.key === "Enter" || event.key === " ") choose(at);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  // Drawn once it is on the page: there is no font and no color before.
  const stops = [listen(model, ["counts", "names", "selected", "title"], draw), themed(draw), fitted(root, draw)];
  return () => stops.forEach((stop) => stop());
}

export default { render };
