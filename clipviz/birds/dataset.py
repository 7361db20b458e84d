"""Birds as a dataset: "birds" and "birds/DOMAIN", rendered on demand, split by seed.

`render_image` is all of an image: background, bird, what lies over it, then the domain's effect on the pixels.
`severity` scales the shift continuously: 0 is the source domain, 1 the default, 2 is cruel.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from clipviz.birds.render import ATTRIBUTE_PARTS, IMAGE_SIDE, PART_ID, PART_NAMES, draw_bird, sample_pose
from clipviz.birds.shapes import Canvas, Shape, capsule, ellipse
from clipviz.birds.world import SPECIES
from clipviz.data.base import ImageDataset
from clipviz.data.sources.image_files import check_count
from clipviz.errors import choose, parse_json
from clipviz.prompts import Descriptions, make_prompts, short_hash

DOMAINS = ("source", "clutter", "night", "fog", "small", "blur", "mix")
"""Domains to report on: the source and the six shifted targets."""

VALIDATION_DOMAIN = "dusk"
"""A shifted domain for choosing hyperparameters; results on it are never reported as a test of a method."""

SHIFTS = ("clutter", "night", "fog", "small", "blur")


def _smooth_noise(side: int, cells: int, rng: np.random.Generator, channels: int = 1) -> np.ndarray:
    """Low-frequency noise in [0, 1], (S, S, channels): a random cells x cells grid, enlarged bicubically."""
    grid = rng.random((channels, cells, cells), dtype=np.float32)
    planes = [np.asarray(Image.fromarray(g).resize((side, side), Image.Resampling.BICUBIC)) for g in grid]
    return np.clip(np.stack(planes, -1), 0.0, 1.0)


def _plain_background(side: int, rng: np.random.Generator) -> np.ndarray:
    """A soft vertical gradient between two pale colors: a bird against the sky, or in a studio."""
    top, bottom = (rng.uniform(0.5, 0.9, (2, 1)) + rng.uniform(-0.14, 0.14, (2, 3))).astype(np.float32)
    t = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    background = top * (1 - t) + bottom * t
    soft = _smooth_noise(side, 4, rng) - 0.5
    return np.clip(np.broadcast_to(background, (side, side, 3)) + 0.12 * soft, 0.0, 1.0).astype(np.float32)


FOLIAGE = np.array([[0.22, 0.42, 0.14], [0.35, 0.50, 0.18], [0.48, 0.40, 0.20], [0.30, 0.33, 0.22], [0.55, 0.52, 0.30]])


def _leaf(side: int, rng: np.random.Generator) -> tuple[Shape, np.ndarray]:
    size = rng.uniform(0.05, 0.12) * side
    cx, cy = rng.uniform(0, side, 2)
    color = FOLIAGE[rng.integers(len(FOLIAGE))] * rng.uniform(0.7, 1.3)
    return ellipse(cx, -cy, size, size * rng.uniform(0.3, 0.5), rng.uniform(0, np.pi)), np.clip(color, 0, 1)


def _cluttered_background(side: int, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Foliage: two octaves of colored noise, branches and leaves; blends in from the plain background."""
    plain = _plain_background(side, rng)
    base = FOLIAGE[rng.integers(len(FOLIAGE))].astype(np.float32)
    noise = 0.6 * _smooth_noise(side, 7, rng, 3) + 0.4 * _smooth_noise(side, 28, rng, 3)
    texture = np.clip(base * (0.5 + 1.1 * noise) + 0.15 * (noise - 0.5), 0, 1)
    canvas = Canvas((plain + min(1.0, 0.55 * severity) * (texture - plain)).astype(np.float32))
    for _ in range(round(3 * severity)):
        (x0, y0), (x1, y1) = rng.uniform(0, side, (2, 2))
        brown = np.array([0.30, 0.22, 0.14]) * rng.uniform(0.7, 1.4)
        canvas.paint(capsule(x0, -y0, x1, -y1, rng.uniform(0.8, 2.5)), brown, 0)
    for _ in range(round(10 * severity)):
        canvas.paint(*_leaf(side, rng), 0)
    return canvas.rgb


def _occlude(rgb: np.ndarray, parts: np.ndarray, rng: np.random.Generator, severity: float) -> None:
    """Leaves in front of the bird; what they hide is no longer a visible part."""
    canvas = Canvas(rgb)
    canvas.parts = parts
    for _ in range(rng.poisson(2.8 * severity)):
        canvas.paint(*_leaf(rgb.shape[0], rng), 0)


def _night(rgb: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Little light, bluish, with a brighter spot somewhere and sensor noise."""
    side = rgb.shape[0]
    x, y = rng.uniform(0.25, 0.75, 2) * side
    grid = np.arange(side, dtype=np.float32)
    glow = np.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / (0.5 * side) ** 2)[..., None]
    level = np.exp(-severity * (1.28 - 0.54 * glow)) * np.array([0.85, 0.95, 1.15], dtype=np.float32) ** severity
    dark = (rgb + min(0.9, 0.25 * severity) * (rgb.mean(-1, keepdims=True) - rgb)) * level
    return dark + rng.normal(0.0, 0.025 * severity, rgb.shape).astype(np.float32)


def _fog(rgb: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Contrast lost toward a pale veil of uneven density."""
    density = 1.0 - np.exp(-severity * (1.14 + 0.84 * (_smooth_noise(rgb.shape[0], 4, rng) - 0.5)))
    veil = rng.uniform(0.70, 0.85) * np.array([0.97, 1.0, 1.02], dtype=np.float32)
    return rgb + density * (veil - rgb)


def _blur(rgb: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    radius = severity * rng.uniform(2.1, 3.6) * rgb.shape[0] / IMAGE_SIDE
    image = Image.fromarray(_to_uint8(rgb)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=np.float32) / 255.0


def _dusk(rgb: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Low warm light with a slight haze: the validation domain, unlike any of the reported ones."""
    level = np.exp(-0.55 * severity) * np.array([1.25, 0.92, 0.70], dtype=np.float32) ** severity
    haze, warm = np.array([0.55, 0.38, 0.30], dtype=np.float32), rgb * level
    return warm + min(0.9, 0.35 * severity) * _smooth_noise(rgb.shape[0], 5, rng) * (haze - warm)


_EFFECTS = {"night": _night, "fog": _fog, "blur": _blur, "dusk": _dusk}


def _to_uint8(rgb: np.ndarray) -> np.ndarray:
    return (np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def render_image(
    code: np.ndarray, domain: str, rng: np.random.Generator, severity: float = 1.0, side: int = IMAGE_SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """An image (S, S, 3) uint8 of the bird with the attributes `code` (A,), and its visible `PART_NAMES`, (S, S) uint8.

    The same state of `rng` gives the same pixels. The domain "mix" applies two different shifts at 0.7 of the severity.
    """
    choose("domain", domain, (*DOMAINS, VALIDATION_DOMAIN))
    if not 0 <= severity < np.inf:
        raise ValueError(f"severity must be at least 0, got {severity}")
    shifts = {domain: severity}
    if domain == "mix":
        shifts = {str(name): 0.7 * severity for name in rng.choice(SHIFTS, 2, replace=False)}
    clutter = shifts.get("clutter", 0.0)
    background = _cluttered_background(side, rng, clutter) if clutter else _plain_background(side, rng)
    pose = sample_pose(rng, size=1.0 / (1.0 + 0.6 * shifts.get("small", 0.0)))
    parts = draw_bird(background, code, pose)
    if clutter:
        _occlude(background, parts, rng, clutter)
    for name, strength in shifts.items():
        if name in _EFFECTS and strength > 0:
            background = _EFFECTS[name](background, rng, strength)
    return _to_uint8(background), parts


TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {} in the wild.", "a close-up of a {}.")
"""Hand-written prompts for class names, as CLIP's template ensembles."""

DESCRIPTIONS = Path(__file__).with_name("descriptions.json")
"""Sentences on each species that follow from its attributes (`tools/captions.py`)."""

SIZES = {"train": 2000, "val": 480, "test": 960}
"""Images of a split unless `n` says otherwise."""

CACHE_BYTES = 2**28
"""Rendered images that a data set keeps: 2,621 of them, more than any split has by default."""


class BirdsDataset(ImageDataset):
    """Rendered birds of the 24 evaluation species, evenly spread over them, with part masks.

    `severity` is the strength of the domain's shift, 0 = source; rendered images are kept up to `cache_bytes`, those
    that came first. Splits never share an image, and other seeds give other birds of the same species.
    """

    def __init__(
        self, domain: str, split: str, *, seed: int = 0, n: int | None = None, severity: float = 1.0,
        descriptions: Descriptions | None = None, templates: str | Sequence[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        domains = (*DOMAINS, VALIDATION_DOMAIN)
        choose("domain", domain, domains)
        choose("split", split, SIZES)
        check_count(n)
        n = SIZES[split] if n is None else n
        self.name = "birds" if domain == "source" else f"birds/{domain}"
        self.split = split
        self.class_names = tuple(species.name for species in SPECIES)
        described = parse_json(DESCRIPTIONS.read_text("utf-8")) if descriptions is None else descriptions
        self.prompts = make_prompts(self.class_names, templates or TEMPLATES, described)
        self.part_names, self.skipped = PART_NAMES, []
        self.targets = np.arange(n, dtype=np.int64) % len(SPECIES)
        self.names = [f"{self.name}/{split}/{i:05d}" for i in range(n)]
        # (seed, split, domain, index) is the seed of an image, so no two splits share one
        self._key = (seed, list(SIZES).index(split), domains.index(domain))
        self._domain, self._severity = domain, severity
        self._rendered: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = cache_bytes

    def _render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._rendered:
            return self._rendered[index]
        rng = np.random.default_rng([*self._key, index])
        made = render_image(SPECIES[self.targets[index]].code, self._domain, rng, self._severity)
        size = sum(array.nbytes for array in made)
        if size <= self._room:
            self._room -= size
            self._rendered[index] = made
        return made

    def _contents_hash(self) -> str:
        return short_hash([repr((self._key, self._severity))])  # all of an image follows from them and its index

    def image(self, index: int) -> Image.Image:
        """160 x 160 RGB."""
        return Image.fromarray(self._render(index)[0])

    def parts(self, index: int) -> np.ndarray:
        """(160, 160) uint8 ids of the visible parts, as in `part_names`."""
        return self._render(index)[1]


def discriminative_parts(target: int) -> frozenset[int]:
    """Part ids in which a species differs from its look-alikes."""
    return _parts_of(SPECIES[target].discriminative)


def contrast_parts(target: int, contrast: int) -> frozenset[int]:
    """Part ids in which two species differ; "body" and "wing" too where their plans or colors do."""
    first, second = SPECIES[target].values, SPECIES[contrast].values
    return _parts_of(name for name in ATTRIBUTE_PARTS if first[name] != second[name])


def _parts_of(attributes: Iterable[str]) -> frozenset[int]:
    return frozenset(PART_ID[part] for name in attributes for part in ATTRIBUTE_PARTS[name])
