"""Birds as a dataset: "birds" and "birds/DOMAIN", rendered on demand, split by seed."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipviz.birds.domains import DOMAINS, VALIDATION_DOMAIN, render_image
from clipviz.birds.render import ATTRIBUTE_PARTS, PART_ID, PART_NAMES
from clipviz.birds.world import SPECIES
from clipviz.data.base import ImageDataset
from clipviz.data.sources.image_files import check_count
from clipviz.errors import choose, parse_json
from clipviz.prompts import Descriptions, make_prompts, short_hash

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
        self,
        domain: str,
        split: str,
        *,
        seed: int = 0,
        n: int | None = None,
        severity: float = 1.0,
        descriptions: Descriptions | None = None,
        templates: str | Sequence[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
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
        self.part_names = PART_NAMES
        self.skipped = []
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
