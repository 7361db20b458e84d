// Scatter: points of all epochs in one plane; a lasso or a click chooses some.

const MARKS = ["#767676", "#0072B2", "#D55E00"]; // unknown, right, wrong
const MOST_CHOSEN = 500;

function render({ model, el }) {
  const [width, height] = [560, 440];
  const pad = { left: 46, right: 8, top: 8, bottom: 38 };
  const ratio = window.devicePixelRatio || 1;
  const title = make("div", { class: "clipviz-caption" });
  const canvas = make("canvas", { tabindex: "0", role: "application", width: width * ratio, height: height * ratio });
  canvas.style.width = `${width}px`;
  const readout = make("div", { class: "clipviz-readout", "aria-live": "polite" });
  const keys = make("div", { class: "clipviz-legend" });
  const root = make("div", { class: "clipviz clipviz-scatter" }, title, canvas, keys, readout);
  el.append(root);
  const context = canvas.getContext("2d");
  let places, group, label, marks, n, home, view;
  let lasso = null;
  let hover = -1;

  const load = () => {
    const epochs = model.get("n_epochs");
    places = new Float32Array(bytesOf(model, "places").slice().buffer);
    label = new Int32Array(bytesOf(model, "label").slice().buffer);
    group = bytesOf(model, "group");
    marks = bytesOf(model, "marks");
    n = group.length;
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < epochs * n; i++) {
      x0 = Math.min(x0, places[2 * i]);
      x1 = Math.max(x1, places[2 * i]);
      y0 = Math.min(y0, places[2 * i + 1]);
      y1 = Math.max(y1, places[2 * i + 1]);
    }
    if (!n) [x0, x1, y0, y1] = [0, 1, 0, 1];
    const [dx, dy] = [(x1 - x0 || 1) * 0.04, (y1 - y0 || 1) * 0.04];
    home = [x0 - dx, x1 + dx, y0 - dy, y1 + dy];
    view = [...home];
    drawKeys();
  };

  const isImage = (i) => model.get("groups")[group[i]].name === "images";
  const row = () => Math.min(Math.max(model.get("epoch") + 1, 0), model.get("n_epochs") - 1);
  const px = (x) => pad.left + ((x - view[0]) / (view[1] - view[0])) * (width - pad.left - pad.right);
  const py = (y) => height - pad.bottom - ((y - view[2]) / (view[3] - view[2])) * (height - pad.top - pad.bottom);
  const at = (i, epoch = row()) => [px(places[2 * (epoch * n + i)]), py(places[2 * (epoch * n + i) + 1])];

  const shape = (symbol, x, y, r) => {
    context.beginPath();
    if (symbol === "square") context.rect(x - r, y - r, 2 * r, 2 * r);
    else if (symbol === "diamond") polygon([[x, y - 1.4 * r], [x + 1.4 * r, y], [x, y + 1.4 * r], [x - 1.4 * r, y]]);
    else if (symbol === "triangle-up") polygon([[x, y - 1.3 * r], [x + 1.3 * r, y + r], [x - 1.3 * r, y + r]]);
    else context.arc(x, y, r, 0, 7);
  };
  const polygon = (points) => {
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
  };

  const draw = () => {
    const style = getComputedStyle(root);
    const ink = style.color;
    const inks = MARKS.map((color) => solid(root, color));
    const epoch = row();
    const groups = model.get("groups");
    const chosen = model.get("chosen");
    title.textContent = `Prototypes and images, ${model.get("title")}`;
    canvas.setAttribute("aria-label", `${title.textContent}; drag to draw around points, click one, arrow keys step through prototypes`);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.fillStyle = context.strokeStyle = ink;
    context.font = `11px ${style.fontFamily}`;
    drawFrame(ink);
    context.save();
    context.beginPath();
    context.rect(pad.left, pad.top, width - pad.left - pad.right, height - pad.top - pad.bottom);
    context.clip();
    const nImages = group.reduce((sum, _, i) => sum + isImage(i), 0);
    const small = nImages > 5000;
    for (let i = 0; i < n; i++) if (isImage(i)) drawImage(i, epoch, small, inks);
    context.globalAlpha = 1;
    for (let i = 0; i < n; i++) {
      if (isImage(i)) continue;
      const look = groups[group[i]];
      context.strokeStyle = look.color;
      context.lineWidth = 1;
      context.beginPath();
      for (let e = 0; e <= epoch; e++) context[e ? "lineTo" : "moveTo"](...at(i, e));
      context.stroke();
      context.fillStyle = look.color;
      context.strokeStyle = "#222";
      context.lineWidth = 0.7;
      shape(look.symbol, ...at(i), Math.max(2.5, 5.5 - 2 * group[i])); // so that one does not hide the other
      context.fill();
      context.stroke();
    }
    context.strokeStyle = ink;
    context.lineWidth = 1.6;
    for (const i of hover >= 0 ? [...chosen, hover] : chosen) {
      shape("circle", ...at(i), 7);
      context.stroke();
    }
    if (lasso) {
      context.beginPath();
      polygon(lasso);
      context.fillStyle = "rgba(0, 114, 178, 0.12)";
      context.fill();
      context.setLineDash([4, 3]);
      context.stroke();
      context.setLineDash([]);
    }
    context.restore();
    say();
  };

  const drawImage = (i, epoch, small, inks) => {
    const [x, y] = at(i);
    const mark = marks[epoch * n + i];
    context.globalAlpha = 0.65;
    context.fillStyle = context.strokeStyle = inks[mark];
    if (small) context.fillRect(x - 1, y - 1, 2, 2);
    else if (mark === 2) {
      context.lineWidth = 1.4;
      context.beginPath();
      context.moveTo(x - 3, y - 3);
      context.lineTo(x + 3, y + 3);
      context.moveTo(x - 3, y + 3);
      context.lineTo(x + 3, y - 3);
      context.stroke();
    } else {
      shape("circle", x, y, 2.6);
      context.fill();
    }
  };

  const drawFrame = (ink) => {
    const floor = height - pad.bottom;
    context.lineWidth = 1;
    context.strokeStyle = "rgba(128, 128, 128, 0.6)";
    context.strokeRect(pad.left, pad.top, width - pad.left - pad.right, floor - pad.top);
    context.fillStyle = ink;
    context.textAlign = "center";
    for (const x of niceTicks(view[0], view[1], 6)) context.fillText(written(x), px(x), floor + 14);
    context.fillText(model.get("axes")[0], (pad.left + width - pad.right) / 2, height - 6);
    context.textAlign = "right";
    for (const y of niceTicks(view[2], view[3], 6)) context.fillText(written(y), pad.left - 4, py(y) + 3);
    context.save();
    context.translate(10, (pad.top + floor) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(model.get("axes")[1], 0, 0);
    context.restore();
  };

  const drawKeys = () => {
    const found = new Set(marks.filter((_, i) => isImage(i % n)));
    const entries = model.get("groups").filter((look) => look.name !== "images").map((look) => [look.symbol, look.color, look.name]);
    if (found.has(0)) entries.push(["circle", MARKS[0], "images"]);
    if (found.has(1)) entries.push(["circle", MARKS[1], "images, right (diagnostic only)"]);
    if (found.has(2)) entries.push(["x", MARKS[2], "images, wrong (diagnostic only)"]);
    keys.replaceChildren(
      ...entries.map(([symbol, color, name]) => {
        const swatch = makeSvg("svg", { width: 14, height: 12, "aria-hidden": "true" }, marker(symbol, 7, 6, color));
        return make("span", {}, swatch, make("span", {}, name));
      }),
    );
  };

  const describe = (i) => {
    const name = label[i] >= 0 ? `“${model.get("names")[label[i]]}”` : "class unknown";
    return isImage(i) ? `image, ${name}` : `${model.get("groups")[group[i]].name}: ${name}`;
  };
  const say = () => {
    const count = model.get("n_chosen");
    const picked = count ? `${count} ${count === 1 ? "point" : "points"} chosen. ` : "Draw around points, or click one; wheel: zoom, double click: all. ";
    readout.textContent = n ? picked + (hover >= 0 ? describe(hover) : "") : "This trace holds no prototypes.";
  };

  const nearest = (x, y, within) => {
    let [best, distance] = [-1, within * within];
    for (let i = 0; i < n; i++) {
      const [u, v] = at(i);
      // A prototype wins over the images around it.
      const d = ((u - x) ** 2 + (v - y) ** 2) * (isImage(i) ? 1 : 0.25);
      if (d < distance) [best, distance] = [i, d];
    }
    return best;
  };
  const inside = (x, y) => {
    let odd = false;
    for (let i = 0, j = lasso.length - 1; i < lasso.length; j = i++) {
      const [[xi, yi], [xj, yj]] = [lasso[i], lasso[j]];
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
    }
    return odd;
  };
  const choose = (points) => {
    model.set("n_chosen", points.length);
    model.set("chosen", points.slice(0, MOST_CHOSEN));
    model.save_changes();
  };
  const where = (event) => placeOn(canvas, event, width);

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    lasso = [where(event)];
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = where(event);
    if (lasso) lasso.push([x, y]);
    else {
      const found = nearest(x, y, 9);
      if (found === hover) return;
      hover = found;
    }
    requestAnimationFrame(draw);
  });
  canvas.addEventListener("pointerup", () => {
    if (!lasso) return;
    const [x, y] = lasso[0];
    const far = lasso.some(([u, v]) => Math.hypot(u - x, v - y) > 5);
    const found = nearest(x, y, 9);
    const points = [];
    if (far) for (let i = 0; i < n; i++) if (inside(...at(i))) points.push(i);
    if (!far && found >= 0) points.push(found);
    // Images are what a lasso is drawn for; prototypes among them only where there is nothing else.
    const images = points.filter(isImage);
    lasso = null;
    choose(far && images.length ? images : points);
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // the page scrolls unless the plane was chosen
    event.preventDefault();
    const [x, y] = where(event);
    zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, x, y);
  });
  const zoom = (factor, x, y) => {
    const cx = view[0] + ((x - pad.left) / (width - pad.left - pad.right)) * (view[1] - view[0]);
    const cy = view[2] + ((height - pad.bottom - y) / (height - pad.top - pad.bottom)) * (view[3] - view[2]);
    view = [cx + (view[0] - cx) * factor, cx + (view[1] - cx) * factor, cy + (view[2] - cy) * factor, cy + (view[3] - cy) * factor];
    draw();
  };
  canvas.addEventListener("dblclick", () => {
    view = [...home];
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const vectors = [...group.keys()].filter((i) => !isImage(i));
    const place = vectors.indexOf(hover);
    if (event.key === "ArrowRight") hover = vectors[(place + 1) % vectors.length] ?? -1;
    else if (event.key === "ArrowLeft") hover = vectors[(place - 1 + vectors.length) % vectors.length] ?? -1;
    else if ((event.key === "Enter" || event.key === " ") && hover >= 0) choose([hover]);
    else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1 / 1.2 : 1.2, width / 2, height / 2);
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  });

  load();
  // Drawn once it is on the page: there is no font and no color before.
  const again = later(() => {
    load();
    draw();
  });
  const stops = [listen(model, ["places"], again), listen(model, ["epoch", "chosen", "title"], later(draw)), themed(draw), fitted(root, draw)];
  return () => stops.forEach((stop) => stop());
}

export default { render };
