// What happens when the page opens: nothing waits for what is not in view.

function followTheme(changed) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tell = () => {
    document.body.dataset.jpThemeLight = `${!dark.matches}`;
    changed();
  };
  document.body.classList.add("clipviz");
  document.body.dataset.jpThemeLight = `${!dark.matches}`;
  dark.addEventListener("change", tell);
  return tell;
}

let redraw = () => {};
const theme = followTheme(() => redraw());
const explored = explore();
if (document.querySelector("nav.contents")) {
  // A report, and not a view within another page.
  foldContents();
  followReader();
  foldSettings();
  const drawing = drawWhenNear(explored);
  redraw = () => drawing.again(true);
  chooseRuns(() => drawing.again(false));
  jumpTwice(drawing.settled);
  addEventListener("afterprint", theme);
}
