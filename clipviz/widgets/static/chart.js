// One chart of its own.

function render({ model, el }) {
  const root = make("div", { class: "clipviz" });
  el.append(root);
  let width = 0;
  const draw = () => {
    const spec = model.get("spec");
    if (width) root.replaceChildren(...(spec.series ? [chart(spec, Math.min(width, 560))] : []));
  };
  const stops = [
    listen(model, ["spec"], draw),
    fitted(root, (now) => {
      width = now;
      draw();
    }),
  ];
  return () => stops.forEach((stop) => stop());
}

export default { render };
