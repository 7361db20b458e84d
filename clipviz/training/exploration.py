"""Evaluation images spread over the classes: what a method says of each and where it looks, to explore afterwards."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipviz.backbone.ownership import preserved_state
from clipviz.data.base import ImageDataset
from clipviz.events import Exploration, Predictions, SentenceSimilarity
from clipviz.methods.base import Method
from clipviz.training.evaluate import probe_images, spread
from clipviz.training.highlights import all_maps, classes_in_question, nearest_sentences

MOST = 480  # images
TOP = 5  # classes of each
THUMBNAIL = 96  # largest side in pixels
MOST_SENTENCES = 2_000  # to embed: where classes have more, only the highlights get theirs
_AT_ONCE = 64


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
    top = _top_classes(probs, target)
    is_same = known is not None and not method.adapts_tower
    embeddings = (
        predictions.embeddings[index].float()
        if method.works_on_embeddings and predictions.embeddings is not None
        else None
    )
    parts = []
    for rows in np.array_split(np.arange(len(index)), -(-len(index) // _AT_ONCE)):
        part: dict[tuple[str, str], Tensor] = {}
        if not is_same or embeddings is None:
            images = probe_images(dataset, index[rows], method.backbone.image_size).images
        inputs = images if embeddings is None else embeddings[rows]
        with preserved_state(method):
            if not is_same:
                maps = all_maps(method, images.to(method.backbone.device))
                part |= {("maps", kind): values.cpu() for kind, values in maps.items()}
            for name, logits in method.branches(inputs.to(method.backbone.device)).items():
                part["logits", name] = logits.cpu().gather(1, top[rows])
        if known is None:
            side = min(THUMBNAIL, method.backbone.image_size)
            part["images", ""] = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        parts.append(part)
    kept = [key for key in parts[0] if all(key in part for part in parts)]  # kinds may be registered meanwhile
    seen = {key: torch.cat([part[key] for part in parts]) for key in kept}
    found = {group: {name: seen[g, name] for g, name in seen if g == group} for group in ("maps", "logits")}
    if known is not None and is_same:
        found["maps"] = dict(known.maps)
    said, places = _sentences(method, predictions, index), torch.from_numpy(index)
    return Exploration(
        places, target, found["maps"], top, probs.gather(1, top), found["logits"], said, seen.get(("images", ""))
    )


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
