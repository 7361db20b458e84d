"""Traces with plausible numbers, made without torch or a model: what figures and the report are tested on."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image

from clipviz.trace import Trace

PART_NAMES = ["background", "body", "wing", "head", "beak"]
N_CROPS = 4
SOURCES = {
    "microclip": ("static", "dynamic"),
    "dpa": ("text", "image"),
    "ntua": ("zero_shot", "cache", "teacher"),
}
TRAINED = tuple(SOURCES)


def synthetic_trace(
    n_classes: int = 24,
    epochs: int = 5,
    *,
    n_images: int = 480,
    n_eval: int = 240,
    n_probe: int = 6,
    method: str = "microclip",
    labelled: bool = True,
    skill: float = 1.0,
    seed: int = 0,
    class_names: list[str] | None = None,
) -> Trace:
    """A run of `method`; `epochs=0` is a baseline, `skill` scales how much its logits know (0 = chance)."""
    rng = np.random.default_rng(seed)
    names = class_names or [f"{_ADJECTIVES[i % 12]} {_BIRDS[i // 12 % 17]}" for i in range(n_classes)]
    trace = Trace(meta=_meta(names, method, epochs, n_images, labelled, seed))
    _fill_training(trace, rng, len(names), epochs or 1, n_images, skill)
    if epochs:
        trace.steps = _steps(rng, epochs)
    _fill_predictions(trace, rng, len(names), epochs, n_eval, skill)
    if epochs:
        _fill_arrays(trace, rng, len(names), epochs, n_probe)
    if not labelled:
        _forget_targets(trace)
    trace.meta["accuracy_is"] = "test" if labelled else None
    return trace


def synthetic_comparison(epochs: int = 5, **options) -> list[Trace]:
    """Two baselines and three trained methods on the same data."""
    baselines = [
        synthetic_trace(epochs=0, method="zero_shot", skill=0.75, **options),
        synthetic_trace(epochs=0, method="descriptions", skill=0.85, **options),
    ]
    return baselines + [
        synthetic_trace(epochs=epochs, method=method, skill=skill, **options)
        for method, skill in (("ntua", 0.9), ("dpa", 1.1), ("microclip", 1.0))
    ]


def explorable(trace: Trace, n: int, grid: int = 8, kinds: tuple[str, ...] = ("cls_attention",)) -> Trace:
    """Add what a run records of its first n evaluation images: thumbnails and maps, which no packing makes smaller."""
    rng, last = np.random.default_rng(0), trace.predictions[trace.predictions["epoch"] == trace.final_epoch]
    last = last.sort_values("index").head(n)
    thumbs = np.stack([_picture(rng, 64)[0] for _ in range(40)])[np.resize(np.arange(40), -(-len(last) // 20) * 20)]
    sheet = thumbs.reshape(-1, 20, 64, 64, 3).swapaxes(1, 2).reshape(-1, 20 * 64, 3)[:, : min(20, len(last)) * 64]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(file, "JPEG", quality=85)
    n_classes = len(trace.class_names)
    top = np.stack([(last["prediction"].to_numpy() + i) % n_classes for i in range(min(5, n_classes))], 1)
    probs = np.full(top.shape, 0.1, np.float16)
    probs[:, 0] = last["confidence"]
    own = {"sheet": np.frombuffer(file.getvalue(), np.uint8), "index": last["index"].to_numpy(),
           "target": last["target"].to_numpy(), "top": top, "probs": probs, "logits/cls": probs}  # fmt: skip
    for kind in kinds:
        own |= {
            f"{when}/{kind}": rng.integers(0, 255, (len(last), grid, grid), np.uint8) for when in ("before", "after")
        }
    trace.arrays |= {f"exploration/{name}": values for name, values in own.items()}
    trace.meta["exploration_sentences"] = [[0, 0, "a <b>bird</b> of the first class", 0.25]]
    return trace


def empty_trace() -> Trace:
    return Trace()


_ADJECTIVES = [
    "red-capped",
    "yellow-billed",
    "white-throated",
    "black-tailed",
    "blue-winged",
    "ringed",
    "spotted",
    "barred",
    "striped",
    "orange-footed",
    "hook-billed",
    "grey-backed",
]
_BIRDS = [
    "finch",
    "heron",
    "swallow",
    "owl",
    "duck",
    "warbler",
    "thrush",
    "plover",
    "tern",
    "gull",
    "wren",
    "lark",
    "pipit",
    "martin",
    "grebe",
    "stork",
    "crane",
]


def _meta(names, method, epochs, n_images, labelled, seed):
    gamma = 0.7 if method == "microclip" else None
    return {
        "method": method,
        "model": "birds",
        "data": "birds/clutter",
        "eval_data": "birds/clutter",
        "split": "train",
        "eval_split": "test",
        "seed": seed,
        "class_names": names,
        "part_names": PART_NAMES,
        "n_images": n_images,
        "epochs": epochs,
        "status": "finished",
        "seconds": 1.5 + 11.0 * epochs,
        "n_crops": N_CROPS if method == "microclip" else None,
        "settings": {
            "method": {"gamma": gamma, "tau": 0.2},
            "schedule": {"epochs": epochs, "learning_rate": 1e-3},
        },
        "sources": list(SOURCES.get(method, ())),
        "gamma": gamma,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "open_clip": "3.3.0", "clipviz": "0.1.0"},
        "command": f"clipviz adapt {method} --model birds --data birds/clutter --out runs/{method}",
    }


def _softmax(logits):
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def _logits(rng, target, n_classes, knows):
    """Scaled logits that know the class by `knows` and its group of four look-alikes better than that."""
    logits = rng.normal(0, 1.3, (len(target), n_classes))
    same_group = (np.arange(n_classes)[None] // 4) == (target[:, None] // 4)
    logits += 2.2 * min(1.0, knows) * same_group
    logits[np.arange(len(target)), target] += 1.6 * knows
    return logits


def _fill_training(trace, rng, n_classes, epochs, n_images, skill):
    target = rng.integers(0, n_classes, n_images)
    fixed = {name: _logits(rng, target, n_classes, skill) for name in trace.meta["sources"]}
    rows, epoch_rows = [], []
    for epoch in range(epochs):
        gain = 1 + 0.9 * (1 - 0.6**epoch)
        moving = _logits(np.random.default_rng(7), target, n_classes, skill * gain)
        sources = {n: s if i == 0 else 0.3 * s + 0.8 * moving for i, (n, s) in enumerate(fixed.items())}
        values = list(sources.values()) or [_logits(np.random.default_rng(5), target, n_classes, skill)]
        logits = 0.7 * values[0] + 0.3 * values[1] if len(values) == 2 else sum(values) / len(values)
        probs = _softmax(logits * (1 + 0.25 * epoch))
        top = np.sort(probs, 1)[:, -2:]
        frame = {
            "epoch": np.full(n_images, epoch),
            "index": np.arange(n_images),
            "pseudo_label": probs.argmax(1),
            "confidence": top[:, -1].astype(np.float32),
            "margin": (top[:, -1] - (top[:, 0] if n_classes > 1 else 0)).astype(np.float32),
            "weight": np.ones(n_images, np.float32),
            "target": target,
        }
        for name, source in sources.items():
            frame[f"{name}_label"] = source.argmax(1)
            frame[f"{name}_confidence"] = _softmax(source).max(1).astype(np.float32)
        if trace.meta["method"] == "microclip":
            weights = rng.dirichlet(np.full(N_CROPS, 40.0 / (1 + epoch)), n_images)
            frame["crop_weight_max"] = weights.max(1).astype(np.float32)
            frame["crop_effective"] = np.exp(-(weights * np.log(weights)).sum(1)).astype(np.float32)
        rows.append(pd.DataFrame(frame).sample(frac=1, random_state=epoch, ignore_index=True))
        epoch_rows.append((epoch, "pseudo_label_accuracy", float((probs.argmax(1) == target).mean())))
        epoch_rows.append((epoch, "lambda_2", 0.5 - 0.01 * epoch))
    trace.samples = pd.concat(rows, ignore_index=True)
    trace.epochs = pd.DataFrame(epoch_rows, columns=["epoch", "metric", "value"])
    if sources:
        trace.arrays |= {"sources/index": np.arange(n_images), "sources/target": target}
    for name, source in sources.items():
        trace.arrays[f"sources/{name}"] = source.astype(np.float16)


def _fill_predictions(trace, rng, n_classes, epochs, n_eval, skill):
    target = np.random.default_rng(13).integers(0, n_classes, n_eval)  # of the images, whatever the run
    rows, epoch_rows = [], []
    for epoch in range(-1, epochs or 1):
        knows = skill * (1 + 0.8 * (1 - 0.6 ** (epoch + 1)) * bool(epochs))
        probs = _softmax(_logits(np.random.default_rng(11), target, n_classes, knows))
        prediction = probs.argmax(1)
        frame = {"epoch": epoch, "index": np.arange(n_eval), "prediction": prediction}
        rows.append(pd.DataFrame({**frame, "confidence": probs.max(1).astype(np.float32), "target": target}))
        epoch_rows.append((epoch, "accuracy", float((prediction == target).mean())))
    trace.predictions = pd.concat(rows, ignore_index=True)
    accuracy = pd.DataFrame(epoch_rows, columns=["epoch", "metric", "value"])
    trace.epochs = pd.concat([trace.epochs, accuracy], ignore_index=True) if len(trace.epochs) else accuracy


def _steps(rng, epochs, steps_per_epoch=15):
    rows = []
    for step in range(epochs * steps_per_epoch):
        terms = {
            "cross_entropy": 2.2 * 0.985**step + rng.normal(0, 0.08),
            "fairness": 3.3 + 0.3 * 0.97**step + rng.normal(0, 0.02),
        }
        terms["loss"] = sum(terms.values())
        rows += [(step // steps_per_epoch, step, term, value) for term, value in terms.items()]
    return pd.DataFrame(rows, columns=["epoch", "step", "term", "value"])


def _fill_arrays(trace, rng, n_classes, epochs, n_probe, size=96, grid=8):
    pictures = [_picture(rng, size) for _ in range(n_probe)]
    images = np.stack([image for image, _ in pictures])
    parts = np.stack([mask for _, mask in pictures])
    target = rng.integers(0, n_classes, n_probe)
    cells = (parts > 0).reshape(n_probe, grid, size // grid, grid, size // grid).mean((2, 4))
    noise = rng.random((epochs + 1, n_probe, grid, grid))
    share = np.linspace(0.15, 0.85, epochs + 1)[:, None, None, None]
    soap = (share * cells[None] + (1 - share) * noise**3).astype(np.float32)
    trace.arrays |= {
        "probe/images": images,
        "probe/index": np.arange(n_probe),
        "probe/target": target,
        "probe/parts": parts,
        "probe/soap": soap / soap.sum((2, 3), keepdims=True),
        "probe/fiedler": (share * (cells[None] - 0.3) + (1 - share) * (noise - 0.5)).astype(np.float32),
        "probe/ncut": ((share * cells[None] + (1 - share) * noise) > 0.45).astype(np.float32),
    }
    start = rng.normal(size=(n_classes, 32))
    group = rng.normal(size=(-(-n_classes // 4), 32)).repeat(4, 0)[:n_classes]  # look-alikes move together
    start += group
    drift = 0.1 * (rng.normal(size=(n_classes, 32)) - 0.5 * group)
    path = np.stack([start + drift * epoch for epoch in range(epochs + 1)])
    path /= np.linalg.norm(path, axis=-1, keepdims=True)
    trace.arrays["snapshot/learned_classifier"] = path.astype(np.float32)
    trace.arrays["snapshot/static_classifier"] = np.repeat(path[:1], epochs + 1, 0).astype(np.float32)
    last = trace.predictions[trace.predictions["epoch"] == epochs - 1]
    last = last[last["prediction"] != last["target"]].sort_values("confidence", ascending=False).head(n_probe)
    wrong = np.resize(last.to_numpy(), (n_probe, last.shape[1])) if len(last) else np.zeros((n_probe, 5))
    number, prediction, target = (
        wrong[:, last.columns.get_loc(n)].astype(int) for n in ("index", "prediction", "target")
    )
    probs = rng.dirichlet(np.full(n_classes, 0.05), n_probe)
    probs[np.arange(n_probe), prediction] += 1
    probs[np.arange(n_probe), target] += 0.3
    probs /= probs.sum(1, keepdims=True)
    trace.arrays |= {
        "gallery/images": images,
        "gallery/index": number,
        "gallery/target": target,
        "gallery/prediction": probs.argmax(1),
        "gallery/confidence": probs.max(1).astype(np.float32),
        "gallery/probs": probs.astype(np.float32),
        "gallery/soap": trace.arrays["probe/soap"][-1],
        "gallery/ncut": trace.arrays["probe/ncut"][-1],
        "gallery/fiedler": trace.arrays["probe/fiedler"][-1],
        "gallery/parts": parts,
        "gallery/branch/cls": _softmax(np.log(probs + 1e-6) * 2.0).astype(np.float32),
        "gallery/branch/fg": _softmax(np.log(probs + 1e-6) * 0.6).astype(np.float32),
        "examples/images": np.stack([_picture(rng, 64)[0] for _ in range(n_classes)]),
        "examples/label": np.arange(n_classes),
    }


def _picture(rng, size):
    """A bird of ellipses on a noisy ground (size,size,3), and the part of every pixel (size,size), uint8."""
    y, x = np.mgrid[:size, :size] / size
    cx, cy = rng.uniform(0.35, 0.6, 2)
    parts = np.zeros((size, size), np.uint8)
    for part, (dx, dy, rx, ry) in enumerate(
        [(0, 0, 0.24, 0.16), (-0.05, 0.01, 0.14, 0.07), (0.22, -0.14, 0.1, 0.1), (0.33, -0.14, 0.06, 0.03)], 1
    ):
        parts[((x - cx - dx) / rx) ** 2 + ((y - cy - dy) / ry) ** 2 < 1] = part
    colors = rng.integers(30, 230, (5, 3))
    colors[0] = rng.integers(90, 200, 3)
    image = colors[parts] + rng.normal(0, 12, (size, size, 1)) + 25 * np.sin(9 * x + 7 * y)[..., None]
    return image.clip(0, 255).astype(np.uint8), parts


def _forget_targets(trace):
    for table in (trace.samples, trace.predictions):
        table["target"] = -1
    for name in [n for n in trace.arrays if n.endswith("/target")]:
        trace.arrays[name] = np.full_like(trace.arrays[name], -1)
    for name in ("probe/parts", "gallery/parts"):
        trace.arrays.pop(name, None)
    trace.meta["part_names"] = []
    trace.epochs = trace.epochs[~trace.epochs["metric"].str.contains("accuracy")].reset_index(drop=True)
