// One chart of its own.

function render({ model, el }) {
  const root = make("div", { class: "clipviz" });
  el.append(root);
  const draw = () => {
    const spec = model.get("spec");
    root.replaceChildren(...(spec.series ? [chart(spec, model.get("width"))] : []));
  };
  draw();
  return listen(model, ["spec"], draw);
}

export default { render };
