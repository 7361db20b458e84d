"""The most similar rows by cosine, block by block: never n x n in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS, _COLUMNS, _GROUP = 1024, 16_384, 64
LIKELY = 5
"""So many of its likeliest classes are searched for each row."""


def nearest(
    queries: Tensor, embeddings: Tensor, k: int, classifier: Tensor | None = None, *, same: bool = False
) -> tuple[Tensor, Tensor]:
    """The k rows that are most like each query, the most similar first.

    Queries (q, E) and embeddings (n, E) have unit norm. With a classifier (C, E) only those rows are searched whose
    likeliest class is one of the query's `LIKELY` likeliest. `same` says that the queries are the embeddings; none is
    its own neighbor then.

    Returns:
        Cosines (q, k) and row numbers (q, k) int64, k at most n; where too few were found, cosine 0 and row 0.
    """
    k = min(k, len(embeddings) - same)
    best = queries.new_full((len(queries), k), -torch.inf)
    found = torch.zeros(best.shape, dtype=torch.int64, device=best.device)
    for asked, held in _lists(queries, embeddings, classifier) if k else ():
        for rows in asked.split(_ROWS):
            for columns in held.split(_COLUMNS):
                cosine = queries[rows] @ embeddings[columns].T
                if same:
                    place = torch.searchsorted(columns, rows).clamp(max=len(columns) - 1)
                    own = (columns[place] == rows).nonzero()[:, 0]
                    cosine[own, place[own]] = -torch.inf
                top, place = _top(cosine, min(k, len(columns)))
                best[rows], order = torch.cat([best[rows], top], 1).topk(k)
                found[rows] = torch.cat([found[rows], columns[place]], 1).gather(1, order)
    is_found = best > -torch.inf
    return best.where(is_found, 0), found.where(is_found, 0)


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k)`, by way of the k groups with the largest maxima: topk alone takes longer than the product."""
    n = values.shape[1]
    if n < 4 * k * _GROUP or n % _GROUP:
        return values.topk(k)
    grouped = values.unflatten(1, (-1, _GROUP))
    groups = grouped.amax(-1).topk(k)[1]
    chosen = grouped.gather(1, groups[..., None].expand(-1, -1, _GROUP)).flatten(1)
    top, place = chosen.topk(k)
    return top, groups.gather(1, place // _GROUP) * _GROUP + place % _GROUP


def _lists(queries: Tensor, embeddings: Tensor, classifier: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of query rows and of the rows to search for them, ascending; each row is searched once for a query."""
    if classifier is None:
        here = queries.device
        yield torch.arange(len(queries), device=here), torch.arange(len(embeddings), device=here)
        return
    asked = _likeliest(queries, classifier, min(LIKELY, len(classifier)))
    held = _likeliest(embeddings, classifier, 1)[:, 0]
    for label in range(len(classifier)):
        rows, columns = (asked == label).any(1).nonzero()[:, 0], (held == label).nonzero()[:, 0]
        if len(rows) and len(columns):
            yield rows, columns


def _likeliest(embeddings: Tensor, classifier: Tensor, n: int) -> Tensor:
    return torch.cat([(rows @ classifier.T).topk(n)[1] for rows in embeddings.split(_COLUMNS)])
