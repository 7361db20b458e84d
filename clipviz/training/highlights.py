"""What is said of evaluation images, beside the predictions: maps, sentences, cache entries.

Of a few instructive ones when a run is done, and before and after it of many, spread over the classes, to explore.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipviz.backbone.ownership import preserved_state
from clipviz.data.base import ImageDataset
from clipviz.events import UNLABELLED, CacheContributions, Exploration, Highlights, Predictions, SentenceSimilarity
from clipviz.instructive import worth_learning_from
from clipviz.methods.base import Method, ask, embed, sentence_embeddings
from clipviz.ops import expect_axes
from clipviz.training.evaluate import probe_images, spread

THUMBNAIL, LARGER_THUMBNAIL = 64, 96  # sides in pixels: of an example, at most of an image to explore
SENTENCES = 2  # descriptions kept of each class in question
NEIGHBORS = 5  # cache entries kept of each image
MOST = 480  # images to explore
TOP = 5  # classes kept of each
MOST_SENTENCES = 2_000  # to embed: where classes have more, only the highlights get theirs
_AT_ONCE = 64


def highlights(
    method: Method, dataset: ImageDataset, predictions: Predictions, learned: ImageDataset | None = None, n: int = 12
) -> Highlights | None:
    """At most n instructive images with the final model's saliency; None where there is nothing to show.

    `predictions` are of all images of `dataset`, those measured on; the entries of a cache come from those `learned`.
    """
    index = instructive(predictions, n)
    if not dataset.has_pixels or len(index) == 0:
        return None
    probe = probe_images(dataset, index, method.backbone.image_size)
    images = probe.images.to(method.backbone.device)
    probs = predictions.probs[torch.from_numpy(index)]
    with preserved_state(method), method.backbone.shared_tokens():
        explanation = {kind: value.cpu() for kind, value in all_maps(method, images).items()}
        branches = {name: logits.softmax(-1).cpu() for name, logits in method.branches(images).items()}
        sentences = nearest_sentences(method, images, classes_in_question(probs, probe.target))
        cache = ask(method, "cache_contributions", images, NEIGHBORS)
    examples = surest_examples(predictions, index)
    called = predictions.probs[torch.from_numpy(examples)].argmax(-1)
    cached = None if cache is None else _cache_images(learned, cache)
    thumbnails = _thumbnails(dataset, examples)
    return Highlights(probe, probs, explanation, branches, thumbnails, called, sentences, cache, cached)


def explained(method: Method, images: Tensor) -> dict[str, Tensor]:
    """The method's own maps, and those of the kinds that a user has registered: kind -> (B, h, w)."""
    own, kinds = ask(method, "explain", images, otherwise={}), sys.modules.get("clipviz.saliency.maps")
    for kind, maps in own.items():
        expect_axes(images=(images.flatten(1), "Bn"), **{f"explain of {method.name}: {kind!r}": (maps, "Bhw")})
    return own if kinds is None else own | kinds.registered_maps(method, images)  # not loaded: nobody registered any


def all_maps(method: Method, images: Tensor) -> dict[str, Tensor]:
    """The method's own maps, and where its CLS looks, on every ViT: what a map of the foreground is compared with."""
    from clipviz.saliency.maps import available_kinds, raw_map  # which only a run's end needs

    own = explained(method, images)
    if "cls_attention" in available_kinds(method):
        own["cls_attention"] = raw_map(method, images, "cls_attention", None)
    return own


def _thumbnails(dataset: ImageDataset | None, index: np.ndarray) -> Tensor | None:
    """(X, 3, 64, 64) in [0, 1] of some images; None where there are none, or no pixels of them."""
    if dataset is None or not dataset.has_pixels or len(index) == 0:
        return None
    return probe_images(dataset, index, THUMBNAIL).images


def _cache_images(dataset: ImageDataset | None, cache: CacheContributions) -> Tensor | None:
    """(G, k, 3, 64, 64): the images behind the cache entries; None where the cache came from embeddings."""
    unique, places = np.unique(cache.index.numpy(), return_inverse=True)
    thumbnails = _thumbnails(dataset, unique)
    return None if thumbnails is None else thumbnails[torch.from_numpy(places.reshape(cache.index.shape))]


def classes_in_question(probs: Tensor, target: Tensor) -> list[list[int]]:
    """Of (G, C) probs, for each image the class it is called, and its true one (else the runner-up)."""
    return [
        [first, true] if true not in (UNLABELLED, first) else [first, *rest]
        for (first, *rest), true in zip(probs.topk(min(2, probs.shape[1]))[1].tolist(), target.tolist(), strict=True)
    ]


def nearest_sentences(
    method: Method, images: Tensor, classes: list[list[int]], n: int = SENTENCES
) -> tuple[SentenceSimilarity, ...]:
    """The n descriptions of each image's classes that are most like it, by the cosine of the adapted CLS embedding.

    A classifier is the mean of its sentences, so these pull an image (G, 3, S, S), or embedding (G, E), the hardest.
    """
    wanted = sorted({label for labels in classes for label in labels})
    texts = method.sentences
    rows = dict(zip(wanted, sentence_embeddings(method.backbone, [texts[label] for label in wanted]), strict=True))
    found = []
    for place, (embedding, labels) in enumerate(zip(embed(method.backbone, images), classes, strict=True)):
        for label in labels:
            similarity, order = (rows[label] @ embedding.to(rows[label])).sort(descending=True, stable=True)
            for value, i in zip(similarity[:n].tolist(), order[:n].tolist(), strict=True):
                found.append(SentenceSimilarity(place, label, texts[label][i], value))
    return tuple(found)


def instructive(predictions: Predictions, n: int = 12) -> np.ndarray:
    """Positions of at most n images to learn from: the most confident mistakes, two per confused pair of classes.

    Without targets: the images with the least confidence. `predictions` are of the whole evaluation set.
    """
    confidence, labels = (t.numpy() for t in predictions.probs.max(-1))
    return worth_learning_from(labels, confidence, predictions.target.numpy(), n)


def surest_examples(predictions: Predictions, index: np.ndarray) -> np.ndarray:
    """What the model takes for the classes in question: of each, the other image most surely called so.

    Classes of the highlights, at (G,) positions: their two top ones, and the true one. Returns positions in the
    evaluation set, at most one for a class.
    """
    confidence, labels = (t.numpy() for t in predictions.probs.max(-1))
    top = predictions.probs[torch.from_numpy(index)].topk(min(2, predictions.probs.shape[1]))[1].numpy()
    classes = np.unique(np.concatenate([top.ravel(), predictions.target.numpy()[index]]))
    others = np.setdiff1d(np.arange(len(labels)), index)
    called = [others[labels[others] == label] for label in classes]
    return np.array([rows[confidence[rows].argmax()] for rows in called if len(rows)], dtype=np.int64)


def explore(
    method: Method, dataset: ImageDataset, predictions: Predictions, known: Exploration | None = None
) -> Exploration | None:
    """Look at the evaluation images once more, in the state that `predictions` are of; None for embeddings.

    `known` was seen before training: its thumbnails are not made again, nor its maps of a frozen image tower.
    """
    if not dataset.has_pixels:
        return None
    index = np.sort(spread(dataset.targets, MOST))
    probs, target = predictions.probs[index], predictions.target[index]
    top, backbone = _top_classes(probs, target), method.backbone
    known_maps = None if known is None or method.adapts_tower else dict(known.maps)
    embeddings = predictions.embeddings if method.works_on_embeddings else None
    parts = []
    for rows in np.array_split(np.arange(len(index)), -(-len(index) // _AT_ONCE)):
        part: dict[tuple[str, str], Tensor] = {}
        if known_maps is None or embeddings is None:
            images = probe_images(dataset, index[rows], backbone.image_size).images.to(backbone.device)
        inputs = images if embeddings is None else embeddings[index[rows]].float().to(backbone.device)
        with preserved_state(method), backbone.shared_tokens():
            if known_maps is None:
                maps = all_maps(method, images)
                part |= {("maps", kind): values.cpu() for kind, values in maps.items()}
            logits = ask(method, "branches", inputs, otherwise={})
            part |= {("logits", name): values.cpu().gather(1, top[rows]) for name, values in logits.items()}
        if known is None:
            side = min(LARGER_THUMBNAIL, backbone.image_size)
            part["images", ""] = F.interpolate(images.cpu(), (side, side), mode="bilinear", antialias=True)
        parts.append(part)
    kept = [key for key in parts[0] if all(key in part for part in parts)]  # kinds may be registered meanwhile
    seen = {key: torch.cat([part[key] for part in parts]) for key in kept}
    found = {group: {name: seen[g, name] for g, name in seen if g == group} for group in ("maps", "logits")}
    said, places = _sentences(method, predictions, index), torch.from_numpy(index)
    every = (places, target, known_maps or found["maps"], top, probs.gather(1, top), found["logits"], said)
    return Exploration(*every, seen.get(("images", "")))


def _top_classes(probs: Tensor, target: Tensor, n: int = TOP) -> Tensor:
    """(S, n) classes by falling probability; the true one takes the last place if it is not among them."""
    top = probs.topk(min(n, probs.shape[1]))[1]
    is_missing = (target >= 0) & (top != target[:, None]).all(1)
    top[is_missing, -1] = target[is_missing]
    return top


def _sentences(method: Method, predictions: Predictions, index: np.ndarray) -> tuple[SentenceSimilarity, ...]:
    """The nearest descriptions of the classes in question of each image, by the embeddings of the predictions."""
    if predictions.embeddings is None or sum(map(len, method.sentences)) > MOST_SENTENCES:
        return ()
    classes = classes_in_question(predictions.probs[index], predictions.target[index])
    with preserved_state(method):
        return nearest_sentences(method, predictions.embeddings[index].float(), classes, 1)
