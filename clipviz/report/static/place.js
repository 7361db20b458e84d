// The table of contents: where the reader is, and which runs have their figures shown.

function followReader() {
  const links = [...document.querySelectorAll("nav.contents a")];
  const targets = links.map((link) => document.getElementById(link.hash.slice(1)));
  let waiting = false;

  const mark = () => {
    waiting = false;
    let current = 0;
    targets.forEach((target, i) => {
      if (target && target.getBoundingClientRect().top < 0.3 * innerHeight) current = i;
    });
    links.forEach((link, i) => {
      if (i === current) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    });
    const list = links[current].closest("details");
    const [top, bottom] = [links[current].offsetTop, links[current].offsetTop + links[current].offsetHeight];
    if (top < list.scrollTop || bottom > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  };
  const soon = () => {
    if (!waiting) requestAnimationFrame(mark);
    waiting = true;
  };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon);
  mark();
}

// Charts above the place one jumps to may grow when they are drawn: then the place is sought once more.
function jumpTwice(settled) {
  document.querySelector("nav.contents").addEventListener("click", (event) => {
    const target = event.target.closest("a") && document.getElementById(event.target.closest("a").hash.slice(1));
    if (target) setTimeout(() => settled().then(() => target.scrollIntoView()), 200);
  });
}

// On a narrow page the contents are a bar on top, which opens and closes.
function foldContents() {
  const list = document.querySelector("nav.contents details");
  const narrow = matchMedia("(max-width: 899px)");
  const fold = () => (list.open = !narrow.matches);
  narrow.addEventListener("change", fold);
  list.addEventListener("click", (event) => {
    if (narrow.matches && event.target.closest("a")) list.open = false;
  });
  fold();
}

function chooseRuns(changed) {
  for (const box of document.querySelectorAll(".runs input"))
    box.addEventListener("change", () => {
      for (const figure of document.querySelectorAll(`figure[data-run="${box.dataset.run}"]`)) figure.hidden = !box.checked;
      changed();
    });
}

// What is the same in all runs is folded away, but for those without scripts and on paper.
function foldSettings() {
  const button = document.querySelector(".fold button");
  if (!button) return;
  const rows = document.getElementById("shared-settings");
  const toggle = () => {
    rows.hidden = !rows.hidden;
    button.setAttribute("aria-expanded", `${!rows.hidden}`);
  };
  button.addEventListener("click", toggle);
  toggle();
}
