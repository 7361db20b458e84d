"""The most similar rows by cosine, block by block: never n x n in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK, _GROUP = 4096, 64
LIKELY = 5
"""So many of its likeliest classes are searched for each row."""


def nearest(
    queries: Tensor, embeddings: Tensor, k: int, classifier: Tensor | None = None, *, same: bool = False
) -> tuple[Tensor, Tensor]:
    """The k rows that are most like each query, the most similar first: cosines and row numbers (q, k), k at most n.

    Queries (q, E) and embeddings (n, E) have unit norm. `same` says that the queries are the embeddings; none is its
    own neighbor then, and each pair is compared once. Without a classifier the search is exact, and costs n^2 E
    multiplications and additions for `same`, 2 q n E otherwise. With a classifier (C, E) it is approximate: exact among
    the rows whose likeliest class is one of the query's `LIKELY` likeliest, about LIKELY / C of all. Where too few were
    found, cosine and row are 0.
    """
    k = min(k, len(embeddings) - same)
    best = queries.new_full((len(queries), k), -torch.inf)
    found = torch.zeros(best.shape, dtype=torch.int64, device=best.device)

    def merge(rows: Tensor, columns: Tensor, cosine: Tensor) -> None:
        top, place = _top(cosine, min(k, len(columns)))
        best[rows], order = torch.cat([best[rows], top], 1).topk(k)
        found[rows] = torch.cat([found[rows], columns[place]], 1).gather(1, order)

    symmetric = same and classifier is None
    for rows, columns in _blocks(queries, embeddings, classifier) if k else ():
        if symmetric and rows[0] > columns[0]:
            continue
        cosine = queries[rows] @ embeddings[columns].T
        if same:
            place = torch.searchsorted(columns, rows).clamp(max=len(columns) - 1)
            own = (columns[place] == rows).nonzero()[:, 0]
            cosine[own, place[own]] = -torch.inf
        merge(rows, columns, cosine)
        if symmetric and rows[0] < columns[0]:
            merge(columns, rows, cosine.T.contiguous())
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


def _blocks(queries: Tensor, embeddings: Tensor, classifier: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Query rows and rows to compare them with, ascending: every pair that is searched once."""
    here = queries.device
    asked, held = [torch.arange(len(queries), device=here)], [torch.arange(len(embeddings), device=here)]
    if classifier is not None:
        asked = _by_class(_likeliest(queries, classifier, min(LIKELY, len(classifier))), len(classifier))
        held = _by_class(_likeliest(embeddings, classifier, 1), len(classifier))
    for its_rows, its_columns in zip(asked, held, strict=True):
        for rows in its_rows.split(_BLOCK) if len(its_rows) and len(its_columns) else ():
            for columns in its_columns.split(_BLOCK):
                yield rows, columns


def _likeliest(embeddings: Tensor, classifier: Tensor, n: int) -> Tensor:
    return torch.cat([(rows @ classifier.T).topk(n)[1] for rows in embeddings.split(_BLOCK)])


def _by_class(classes: Tensor, n_classes: int) -> list[Tensor]:
    """Of the classes (n, m) of each row the rows of each class, ascending."""
    order = classes.flatten().argsort(stable=True) // classes.shape[1]
    return list(order.split(torch.bincount(classes.flatten(), minlength=n_classes).tolist()))
