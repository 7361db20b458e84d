"""The frozen crop teacher: a variant beyond the official microCLIP, in which the crops are embedded once an image.

Its K crop embeddings g_k of an image, eq. (4), are those of the first pass over the data, before any training, and are
kept in float16 for the whole run: n K E numbers of 2 bytes, for 10,000 images, 8 crops and E = 512 that is 82 MB, in
memory and in every checkpoint. A step then embeds 2 views instead of 2 + K, and epochs after the first make no crops at
all. What it gives up: the crops are always the same K, and the static logits of eq. (5) no longer grow with the model
(only their weights r do, by the model's own g).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import Batch
from clipviz.methods.base import embed_crops


class FrozenCrops(nn.Module):
    """A bank of embeddings by the model as it was before training, (n, K, E) float16."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.bank = nn.Buffer(torch.zeros(0, 0, backbone.embed_dim, dtype=torch.float16, device=backbone.device))

    def see(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Fill the bank; the model must not have been trained yet."""
        rows = [(batch.index, batch.views.gather(embed_crops(backbone, batch.views)).half()) for batch in batches]
        index, embeddings = map(torch.cat, zip(*rows, strict=True))
        self.bank.data = torch.empty_like(embeddings)  # in place, as `Method._resize` does
        self.bank[index] = embeddings

    def embeddings(self, index: Tensor) -> Tensor:
        """Crop embeddings (B, K, E), unit norm up to float16, of the images at `index`."""
        if len(self.bank) == 0:
            raise ValueError("the frozen crop teacher has seen no images; call prepare(batches) first, as adapt does")
        return self.bank[index].float()
