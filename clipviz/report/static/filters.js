// Which images a reader asks for. Everything is by place: 0 to n - 1.

const NONE = 65535; // a class that is not known

class Images {
  constructor(content) {
    Object.assign(this, content);
    this.index = numbers(content.index);
    this.target = numbers(content.target);
    this.n = this.index.length;
    this.hasTargets = this.target.some((target) => target >= 0);
    this.runs = content.runs.map((run) => ({
      ...run,
      prediction: numbers(run.prediction),
      confidence: numbers(run.confidence),
      decided: numbers(run.decided),
      parts: run.parts.map((part) => ({
        ...part,
        rows: new Map([...numbers(part.places)].map((place, row) => [place, row])),
        top: numbers(part.top),
        probs: numbers(part.probs),
        logits: Object.fromEntries(Object.entries(part.logits).map(([name, values]) => [name, numbers(values)])),
        maps: part.maps.map((map) => ({ ...map, values: numbers(map.values) })),
      })),
    }));
  }

  // What a run called an image at its k-th measurement, -1 for the last: class, confidence, whether that is right, and
  // which part of the method decided it, "" if that is not known.
  said(run, place, k = -1) {
    const row = k < 0 ? run.epochs.length + k : k;
    const label = row < 0 ? NONE : run.prediction[row * this.n + place];
    if (label === undefined || label === NONE) return null;
    const target = this.target[place];
    const decider = run.deciders[run.decided[row * this.n + place]] ?? "";
    return { label, confidence: run.confidence[row * this.n + place] / 100, isRight: target < 0 ? null : label === target, decider };
  }

  // The most probable classes of an image in the last epoch: {label, prob, logits by part of the method}, most probable first.
  top(run, place) {
    const part = run.parts.findLast(({ rows }) => rows.has(place));
    if (!part) return [];
    const from = part.rows.get(place) * part.nTop;
    return [...part.top.subarray(from, from + part.nTop)].map((label, k) => ({
      label,
      prob: part.probs[from + k],
      logits: Object.fromEntries(Object.entries(part.logits).map(([name, values]) => [name, values[from + k]])),
    }));
  }

  // Maps of an image: what was recorded last of each kind and moment.
  maps(run, place) {
    const found = new Map();
    for (const { rows, maps } of run.parts)
      for (const map of rows.has(place) ? maps : []) {
        const size = map.shape[0] * map.shape[1];
        const from = rows.get(place) * size;
        found.set(`${map.kind} ${map.moment}`, { ...map, bytes: map.values.subarray(from, from + size) });
      }
    const kinds = [...new Set([...found.values()].map(({ kind }) => kind))];
    return kinds.flatMap((kind) => ["before", "after"].flatMap((moment) => found.get(`${kind} ${moment}`) ?? []));
  }

  // [class, sentence, cosine] of the sentences that are most like an image.
  nearest(run, place) {
    const part = run.parts.findLast(({ rows, said }) => said.some(([row]) => row === rows.get(place)));
    return (part?.said ?? []).filter(([row]) => row === part.rows.get(place)).map(([, ...more]) => more);
  }

  // How often a run called an image another class than before.
  flips(run, place) {
    const labels = run.epochs.map((_, k) => this.said(run, place, k)?.label).filter((label) => label !== undefined);
    return labels.filter((label, k) => k > 0 && label !== labels[k - 1]).length;
  }

  // By how much each part of a method prefers a class of its own, in logits, the least of them; 0 where parts agree.
  dispute(run, place) {
    const top = this.top(run, place);
    const parts = Object.keys(top[0]?.logits ?? {}).map((name) => {
      const [first, second] = top.map(({ label, logits }) => ({ label, logit: logits[name] })).sort((a, b) => b.logit - a.logit);
      return { label: first.label, lead: first.logit - second?.logit };
    });
    return new Set(parts.map(({ label }) => label)).size > 1 ? Math.min(...parts.map(({ lead }) => lead)) : 0;
  }

  isRight(run, place, k = -1) {
    return this.said(run, place, k)?.isRight === true;
  }

  isWrong(run, place, k = -1) {
    return this.said(run, place, k)?.isRight === false;
  }

  name(place) {
    return this.files[place] ?? `image ${this.index[place]}`;
  }

  className(label) {
    return this.classes[label] ?? `class ${label}`;
  }

  // The name of a class behind a tick where it is the true one.
  marked(label, place) {
    return `${label === this.target[place] ? "✓ " : ""}${this.className(label)}`;
  }

  // Where an image is in the sheet: [left, top, width, height].
  piece(at) {
    const { side, columns } = this;
    return [(at % columns) * side, Math.floor(at / columns) * side, side, side];
  }

  // True parts of an image by their numbers, where they are known.
  partMask(place) {
    const [h, w, ids] = this.partMasks[this.index[place]] ?? [];
    return ids ? { shape: [h, w], bytes: numbers(ids) } : null;
  }

  // "owl 0.93", with whether it is right and what it would be.
  caption(run, place) {
    const said = this.said(run, place);
    const target = this.target[place];
    if (!said) return target < 0 ? this.name(place) : this.className(target);
    const text = `${this.className(said.label)} ${said.confidence.toFixed(2)}`;
    if (said.isRight === null) return text;
    return said.isRight ? `✓ ${text}` : `✗ ${text}, is ${this.className(target)}`;
  }
}

const evolves = (run) => run.isTrained && run.epochs.length > 1;

// Name -> what it lets through: {title, passes(place)}; of one run: {run}; sorted, the greatest first: {rank(place)}.
function makeFilters(images) {
  const { runs } = images;
  const confidence = (run, i) => images.said(run, i)?.confidence ?? 0;
  const least = (i) => Math.min(...runs.map((run) => confidence(run, i)));
  const filters = { all: { title: "all images", passes: () => true } };
  if (images.hasTargets)
    filters.wrong = { title: "all methods wrong, most confident first", passes: (i) => runs.every((run) => images.isWrong(run, i)), rank: least };
  if (runs.length > 1) {
    if (images.hasTargets) filters.right = { title: "all methods right", passes: (i) => runs.every((run) => images.isRight(run, i)) };
    filters.agree = { title: "methods agree", passes: (i) => new Set(runs.map((run) => images.said(run, i)?.label)).size === 1 };
    filters.disagree = {
      title: "methods disagree, most confident first",
      passes: (i) => new Set(runs.map((run) => images.said(run, i)?.label)).size > 1,
      rank: least,
    };
  }
  runs.forEach((run, r) => {
    const add = (name, title, passes, rank) => (filters[`${name}-${r}`] = { run, title, passes, rank });
    if (images.hasTargets && evolves(run)) {
      add("fixed", `fixed by ${run.label}`, (i) => images.isWrong(run, i, 0) && images.isRight(run, i));
      add("broken", `broken by ${run.label}`, (i) => images.isRight(run, i, 0) && images.isWrong(run, i));
    }
    if (evolves(run)) {
      if (!images.hasTargets)
        add("changed", `changed by ${run.label}`, (i) => images.said(run, i, 0)?.label !== images.said(run, i)?.label);
      const flips = (i) => images.flips(run, i);
      add("flipped", `changed most often by ${run.label}`, flips, flips);
    }
    const dispute = (i) => images.dispute(run, i);
    if (run.parts.some(({ logits }) => Object.keys(logits).length > 1))
      add("disputed", `parts of ${run.label} disagree, most confident first`, (i) => dispute(i) > 0, dispute);
    const sure = (i) => confidence(run, i);
    if (images.hasTargets) add("mistaken", `mistakes of ${run.label}, most confident first`, (i) => images.isWrong(run, i), sure);
    add("unsure", `least confident images of ${run.label}`, (i) => images.said(run, i), (i) => -sure(i));
  });
  return filters;
}

// Places that pass all that is asked for.
function choose(images, filters, asked) {
  const { passes, rank } = filters[asked.filter];
  const words = asked.query.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = (i) => [images.name(i), ...(images.target[i] < 0 ? [] : [images.className(images.target[i])])].join(" ").toLowerCase();
  const found = [];
  for (let i = 0; i < images.n; i++) {
    if (!passes(i) || (asked.points && !asked.points.has(i))) continue;
    if (asked.pair && !(images.isRight(asked.pair[0], i) && images.isWrong(asked.pair[1], i))) continue;
    if (asked.cell && !(images.target[i] === asked.cell[0] && images.said(asked.run, i)?.label === asked.cell[1])) continue;
    const text = words.length ? texts(i) : "";
    if (words.every((word) => text.includes(word))) found.push(i);
  }
  if (!rank) return found;
  const ranks = new Map(found.map((place) => [place, rank(place)]));
  return found.sort((a, b) => ranks.get(b) - ranks.get(a));
}
