// LiveMonitor: one message, one redraw.

const GAP = 24; // between charts, as in the style sheet

function render({ model, el }) {
  const headline = make("div", { class: "clipviz-headline", "aria-live": "off" });
  const bar = make("progress", { max: "1", value: "0", "aria-label": "progress of the run" });
  const now = make("div", { class: "clipviz-now" });
  const problem = make("div", { class: "clipviz-problem", role: "alert" });
  const charts = make("div", { class: "clipviz-charts" });
  const slots = Object.fromEntries(["losses", "labels", "decisions", "trajectories"].map((name) => [name, make("div")]));
  charts.append(...Object.values(slots));
  const probe = make("div", { class: "clipviz-probe" });
  const probeTitle = make("div", { class: "clipviz-caption" });
  el.append(make("div", { class: "clipviz clipviz-monitor" }, headline, bar, now, problem, charts, probeTitle, probe));

  const draw = () => {
    const frame = model.get("frame");
    headline.textContent = frame.headline || "";
    bar.value = frame.progress || 0;
    now.replaceChildren(...(frame.now || []).map((line) => make("div", {}, line)));
    problem.textContent = frame.problem || "";
    problem.hidden = !frame.problem;
    probeTitle.textContent = frame.probe || "";
  };

  let width = 0; // of one chart

  const drawChart = (name) => {
    const spec = model.get(name);
    if (spec.series && width) slots[name].replaceChildren(chart(spec, width));
  };

  const arrange = (all) => {
    const columns = all >= 1400 ? 4 : all >= 640 ? 2 : 1;
    charts.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    width = Math.floor((all - GAP * (columns - 1)) / columns);
    Object.keys(slots).forEach(drawChart);
  };

  let turn = 0;

  const drawProbe = async () => {
    const mine = ++turn;
    const bitmap = await bitmapOf(model, "sheet");
    if (mine !== turn) return;
    if (!bitmap) return probe.replaceChildren();
    const side = model.get("side");
    const captions = model.get("captions");
    const [n, h, w] = model.get("shape");
    const maps = bytesOf(model, "maps");
    const colors = bytesOf(model, "colors");
    const figures = captions.map((caption, i) => {
      const piece = [i * side, 0, side, side];
      const image = make("canvas", { width: side, height: side, role: "img", "aria-label": `image: ${caption}` });
      overlay(image, bitmap, piece, null);
      const name = make("figcaption", { title: caption }, caption);
      if (i >= n) return make("figure", {}, image, name); // a method without maps
      const look = make("canvas", { width: side, height: side, role: "img", "aria-label": `saliency: ${caption}` });
      overlay(look, bitmap, piece, maps.subarray(i * h * w, (i + 1) * h * w), h, w, colors);
      return make("figure", {}, image, look, name);
    });
    probe.replaceChildren(...figures);
  };

  draw();
  drawProbe();
  const stops = Object.keys(slots).map((name) => listen(model, [name], () => drawChart(name)));
  stops.push(fitted(charts, arrange), listen(model, ["frame"], draw), listen(model, ["maps", "sheet"], later(drawProbe)));
  return () => stops.forEach((stop) => stop());
}

export default { render };
