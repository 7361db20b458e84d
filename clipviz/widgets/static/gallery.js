// Gallery: thumbnails from one sheet, worked with mouse or keyboard; pointing at one shows it larger.

function render({ model, el }) {
  const grid = make("div", { class: "clipviz clipviz-gallery", role: "listbox", "aria-multiselectable": "true" });
  const title = make("div", { class: "clipviz-caption" });
  const size = make("input", { type: "range", min: 48, max: 192, step: 8, "aria-label": "size of the thumbnails", title: "size of the thumbnails" });
  const head = make("div", { class: "clipviz clipviz-head" }, title, size);
  const empty = make("p", { class: "clipviz clipviz-empty" });
  const large = make("div", { class: "clipviz clipviz-large", "aria-hidden": "true", hidden: "" });
  el.append(head, grid, empty, large);
  let url = null;
  let largeUrl = null;
  let focused = 0;
  let listed = null; // the ids that were drawn last
  let pointed = null; // the id of the image that is shown larger
  let shown = model.get("side");

  // One cell of the sheet, so large; a page without a kernel says which cells of a larger sheet are meant.
  const piece = (node, i, side) => {
    const columns = model.get("columns");
    const place = (model.get("places") || [])[i] ?? i;
    node.style.width = node.style.height = `${side}px`;
    node.style.backgroundImage = `url(${url})`;
    node.style.backgroundSize = `${columns * side}px auto`;
    node.style.backgroundPosition = `-${(place % columns) * side}px -${Math.floor(place / columns) * side}px`;
  };

  const draw = () => {
    const ids = model.get("ids");
    const captions = model.get("captions");
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([bytesOf(model, "sheet")], { type: "image/jpeg" }));
    title.textContent = model.get("label");
    head.hidden = grid.hidden = !ids.length;
    empty.hidden = ids.length > 0;
    grid.setAttribute("aria-label", model.get("label") || "images");
    empty.textContent = ids.length ? "" : model.get("empty");
    focused = 0;
    leave();
    const isOther = listed !== null && listed !== ids.join();
    listed = ids.join();
    const cells = ids.map((id, i) => {
      const cell = make(
        "div",
        { class: "clipviz-thumb", role: "option", tabindex: i ? "-1" : "0", "aria-label": captions[i], title: captions[i] },
        make("div", { class: "clipviz-picture" }),
        make("span", {}, captions[i]),
      );
      cell.addEventListener("click", (event) => choose(i, event.ctrlKey || event.metaKey || event.shiftKey));
      cell.addEventListener("mouseenter", () => point(i));
      cell.addEventListener("mouseleave", leave);
      cell.addEventListener("focus", () => cell.matches(":focus-visible") && point(i));
      cell.addEventListener("blur", leave);
      return cell;
    });
    grid.replaceChildren(...cells);
    scale();
    mark(!isOther);
    if (isOther) grid.scrollTop = 0; // another list is read from its top
  };

  const scale = () => {
    size.value = shown;
    [...grid.children].forEach((cell, i) => {
      piece(cell.firstChild, i, shown);
      cell.style.width = `${shown + 24}px`;
    });
  };
  size.addEventListener("input", () => {
    shown = Number(size.value);
    scale();
  });
  size.addEventListener("change", () => {
    model.set("side", shown); // a kernel answers with a sheet of that size
    model.save_changes();
  });

  // At first as large as the sheet allows; a kernel sends more.
  const point = (i) => {
    const side = 224;
    if (shown >= side || !grid.children[i]) return;
    pointed = model.get("ids")[i];
    piece(large, i, side);
    const box = grid.children[i].getBoundingClientRect();
    const left = box.right + side + 8 < window.innerWidth ? box.right + 4 : Math.max(4, box.left - side - 8);
    large.style.left = `${left}px`;
    large.style.top = `${Math.max(4, Math.min(box.top, window.innerHeight - side - 8))}px`;
    large.hidden = false;
    if (model.get("large_of") === pointed) return enlarge();
    model.set("pointed", pointed);
    model.save_changes();
  };
  const enlarge = () => {
    if (large.hidden || model.get("large_of") !== pointed) return; // of an image that was pointed at before
    if (largeUrl) URL.revokeObjectURL(largeUrl);
    largeUrl = URL.createObjectURL(new Blob([bytesOf(model, "large")], { type: "image/jpeg" }));
    Object.assign(large.style, { backgroundImage: `url(${largeUrl})`, backgroundSize: "cover", backgroundPosition: "0 0" });
  };
  const leave = () => {
    pointed = null;
    large.hidden = true;
  };

  const mark = (scrolls = true) => {
    const selected = new Set(model.get("selected"));
    model.get("ids").forEach((id, i) => grid.children[i]?.setAttribute("aria-selected", `${selected.has(id)}`));
    const chosen = grid.querySelector("[aria-selected=true]");
    if (!chosen || !scrolls) return; // the grid scrolls to it, the notebook stays where it is
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
    const perRow = Math.max(1, Math.floor(grid.clientWidth / (shown + 24 + 4 + 8)));
    const last = grid.children.length - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow };
    if (event.key in steps) focus(Math.min(last, Math.max(0, focused + steps[event.key])));
    else if (event.key === "Home") focus(0);
    else if (event.key === "End") focus(last);
    else if (event.key === "Enter" || event.key === " ") choose(focused, event.ctrlKey || event.shiftKey);
    else if (event.key === "Escape" && !large.hidden) leave();
    else return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook would move to another cell
  });

  draw();
  const stops = [
    listen(model, ["sheet", "ids", "places", "captions", "label"], later(draw)),
    listen(model, ["selected"], () => mark()),
    listen(model, ["large"], later(enlarge)),
  ];
  return () => {
    stops.forEach((stop) => stop());
    for (const made of [url, largeUrl]) if (made) URL.revokeObjectURL(made);
  };
}

export default { render };
