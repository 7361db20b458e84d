// Overlay: one image, and rows of maps laid over it.

function render({ model, el }) {
  const root = make("div", { class: "clipviz clipviz-overlay", "aria-live": "polite" });
  el.append(root);

  let turn = 0;

  const draw = async () => {
    const mine = ++turn;
    const bitmap = await bitmapOf(model, "image");
    if (mine !== turn) return; // a newer image was asked for meanwhile
    const rows = model.get("rows");
    const side = model.get("side");
    const [colors, changes, partColors] = ["colors", "changes", "partColors"].map((name) => bytesOf(model, name));
    const maps = bytesOf(model, "maps");
    const look = { opacity: model.get("opacity"), contour: model.get("contour") };
    if (!bitmap) return root.replaceChildren(make("p", { class: "clipviz-empty" }, model.get("empty")));
    const piece = model.get("piece") || [0, 0, bitmap.width, bitmap.height];
    let start = 0;
    const made = rows.map((row) => {
      const panels = row.panels.map((panel) => {
        const canvas = make("canvas", { width: side, height: side, role: "img", "aria-label": panel.label });
        const [h, w] = panel.shape;
        const map = h * w ? maps.subarray(start, start + h * w) : null;
        start += h * w;
        if (panel.parts) overlayParts(canvas, bitmap, piece, map, h, w, partColors);
        else overlay(canvas, bitmap, piece, map, h, w, panel.change ? changes : colors, { ...look, mask: panel.mask, change: panel.change });
        return make("figure", {}, canvas, make("figcaption", {}, panel.title));
      });
      return make("div", {}, make("div", { class: "clipviz-caption" }, row.title), make("div", { class: "clipviz-panels" }, ...panels));
    });
    root.replaceChildren(...made);
  };

  draw();
  return listen(model, ["image", "piece", "rows", "maps", "opacity", "contour"], later(draw));
}

export default { render };
