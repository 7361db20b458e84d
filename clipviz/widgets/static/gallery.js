// Gallery: thumbnails from one sheet, worked with mouse or keyboard.

function render({ model, el }) {
  const grid = make("div", { class: "clipviz clipviz-gallery", role: "listbox", "aria-multiselectable": "true" });
  const title = make("div", { class: "clipviz clipviz-caption" });
  const empty = make("p", { class: "clipviz clipviz-empty" });
  el.append(title, grid, empty);
  let url = null;
  let focused = 0;

  const draw = () => {
    const ids = model.get("ids");
    const captions = model.get("captions");
    const side = model.get("side");
    const columns = model.get("columns");
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([bytesOf(model, "sheet")], { type: "image/jpeg" }));
    title.textContent = model.get("label");
    title.hidden = !ids.length || !model.get("label");
    grid.hidden = !ids.length;
    empty.hidden = ids.length > 0;
    grid.setAttribute("aria-label", model.get("label") || "images");
    empty.textContent = ids.length ? "" : model.get("empty");
    focused = 0;
    const cells = ids.map((id, i) => {
      const picture = make("div", { class: "clipviz-picture" });
      picture.style.width = picture.style.height = `${side}px`;
      picture.style.backgroundImage = `url(${url})`;
      picture.style.backgroundPosition = `-${(i % columns) * side}px -${Math.floor(i / columns) * side}px`;
      const cell = make(
        "div",
        { class: "clipviz-thumb", role: "option", tabindex: i ? "-1" : "0", "aria-label": captions[i], title: captions[i] },
        picture,
        make("span", {}, captions[i]),
      );
      cell.style.width = `${side + 24}px`;
      cell.addEventListener("click", (event) => choose(i, event.ctrlKey || event.metaKey || event.shiftKey));
      return cell;
    });
    grid.replaceChildren(...cells);
    mark();
  };

  const mark = () => {
    const selected = new Set(model.get("selected"));
    model.get("ids").forEach((id, i) => grid.children[i]?.setAttribute("aria-selected", `${selected.has(id)}`));
    const chosen = grid.querySelector("[aria-selected=true]");
    if (!chosen) return; // the grid scrolls to it, the notebook stays where it is
    const [from, to] = [chosen.offsetTop - grid.offsetTop, chosen.offsetTop - grid.offsetTop + chosen.offsetHeight];
    if (from < grid.scrollTop) grid.scrollTop = from;
    else if (to > grid.scrollTop + grid.clientHeight) grid.scrollTop = to - grid.clientHeight;
  };

  const choose = (i, adds) => {
    const id = model.get("ids")[i];
    const others = model.get("selected").filter((other) => other !== id);
    const was = others.length < model.get("selected").length;
    model.set("selected", adds ? (was ? others : [id, ...others]) : [id]);
    model.save_changes();
    focus(i);
  };

  const focus = (i) => {
    grid.children[focused]?.setAttribute("tabindex", "-1");
    focused = i;
    grid.children[i]?.setAttribute("tabindex", "0");
    grid.children[i]?.focus();
  };

  grid.addEventListener("keydown", (event) => {
    const perRow = Math.max(1, Math.floor(grid.clientWidth / (model.get("side") + 24 + 4 + 8)));
    const last = grid.children.length - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow };
    if (event.key in steps) focus(Math.min(last, Math.max(0, focused + steps[event.key])));
    else if (event.key === "Home") focus(0);
    else if (event.key === "End") focus(last);
    else if (event.key === "Enter" || event.key === " ") choose(focused, event.ctrlKey || event.shiftKey);
    else return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook would move to another cell
  });

  draw();
  const stops = [listen(model, ["sheet", "ids", "captions", "label"], later(draw)), listen(model, ["selected"], mark)];
  return () => {
    stops.forEach((stop) => stop());
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
