"""How far TransCLIP scales: `python -m benchmarks.transduction N ...` for so many embeddings of width 512.

Synthetic and CLIP-like: a modality gap, classes of unequal size that resemble each other, texts a bit off. Prints the
processor time of the neighbor search among likely classes and its recall on some rows, that of the exact search (on the
first 50,000 rows, times the square of how many more there are), of search and eleven passes together, accuracy, and the
peak of the memory. On such data accuracies mean nothing.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import command, positive
from clipviz.methods.neighbors import nearest
from clipviz.methods.transclip import TransCLIPConfig, solve
from clipviz.ops import normalize

WIDTH, ASKED, SEARCHED = 512, 2000, 50_000


def embeddings(n: int, n_classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (n, E), classifier (C, E) and targets (n,)."""
    generator = torch.Generator().manual_seed(seed)

    def direction(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, WIDTH, generator=generator))

    families = direction(-(-n_classes // 10)).repeat_interleave(10, 0)[:n_classes]
    classes = normalize(families + 0.7 * direction(n_classes))
    gap = direction()
    shares = torch.rand(n_classes, generator=generator) + 0.2
    targets = torch.multinomial(shares, n, replacement=True, generator=generator)
    found = torch.empty(n, WIDTH)
    for rows in torch.arange(n).split(50_000):
        found[rows] = normalize(gap + 0.5 * classes[targets[rows]] + 0.8 * direction(len(rows)))
    return found, normalize(0.5 * classes - gap + 0.35 * direction(n_classes)), targets


def peak() -> str:
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"


def measure(n: int, n_classes: int, search_only: bool) -> None:
    f, t, targets = embeddings(n, n_classes)
    text = torch.cat([(rows @ t.T).argmax(1) for rows in f.split(50_000)])
    begun = time.process_time()
    likely = nearest(f, f, 3, t, same=True)[1]
    seconds = time.process_time() - begun
    asked = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:ASKED]
    exact = nearest(f[asked], f, 4)[1][:, 1:]  # the first is the row itself
    begun = time.process_time()
    nearest(f[:SEARCHED], f[:SEARCHED], 3, same=True)
    all_seconds = (time.process_time() - begun) * max(1, n / SEARCHED) ** 2
    recall = (likely[asked][:, :, None] == exact[:, None]).any(1).float().mean()
    print(f"{n:,} rows, {n_classes} classes: neighbors among likely classes {seconds:.0f} s, recall {recall:.3f}; "
          f"among all {all_seconds:.0f} s{', extrapolated' * (n > SEARCHED)}; {peak()}", flush=True)  # fmt: skip
    if search_only:
        return
    begun = time.process_time()
    z = solve(f, t, replace(TransCLIPConfig(), search="likely")).assignments
    right = [(labels == targets).float().mean() for labels in (text, z.argmax(1))]
    print(f"solve {time.process_time() - begun:.0f} s in all, {100 * right[0]:.1f} -> {100 * right[1]:.1f} %, "
          f"{peak()}, {torch.get_num_threads()} threads", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=positive, nargs="+")
    parser.add_argument("--classes", type=positive, default=300)
    parser.add_argument("--search-only", action="store_true")
    args = parser.parse_args()
    for n in args.n:
        measure(n, args.classes, args.search_only)


if __name__ == "__main__":
    command(main)
