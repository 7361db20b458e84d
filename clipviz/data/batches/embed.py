"""From images to embeddings."""

import torch
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.backbone.ownership import preserved_state
from clipviz.data.base import ImageDataset, ViewConfig
from clipviz.data.batches.features import FeatureDataset
from clipviz.data.batches.loader import eval_views
from clipviz.parallel import ONE, Ranks


def embed_dataset(
    backbone: Backbone, dataset: ImageDataset, classifier: Tensor | None = None, ranks: Ranks = ONE
) -> FeatureDataset:
    """Embeddings (n, E) float32, on the CPU, of the whole (center-cropped) views, with all that `dataset` says of them.

    A classifier (C, E) is kept beside them. All processes of `ranks` share the work and get all embeddings.
    """
    rows = []
    for views in eval_views(dataset, ViewConfig(backbone.image_size), 256, backbone.device, ranks):
        with preserved_state(backbone):
            rows.append(views.gather(backbone.embed(views.weak)).cpu())
    return FeatureDataset(
        torch.cat(rows),
        name=dataset.name,
        split=dataset.split,
        targets=torch.from_numpy(dataset.targets.copy()),
        class_names=dataset.class_names,
        classifier=None if classifier is None else classifier.cpu(),
        logit_scale=backbone.logit_scale,
        model=backbone.name,
    )
