"""Normalized cut over patch tokens: affinity -> normalized Laplacian -> Fiedler vector -> foreground mask.

Shi & Malik (2000) as used by TokenCut and by microCLIP's official code. With S the similarity of two patches,

    A_ij = 1 if S_ij > tau else eps,    d_i = sum_j A_ij,    L = s (diag(d) - A) s,    s_i = 1 / (sqrt(d_i) + eps)

and f the eigenvector of L's second-smallest eigenvalue. An eigenvector has no sign of its own, and the official code
thresholds before it fixes one, so its mask is either a salient core or almost everything, by the whim of the solver.
Here f is first turned so that its entry of largest magnitude is positive; then it is thresholded once.

That settles the sign unless two entries of opposite sign share the largest magnitude. They do where the graph looks
the same with two patches exchanged and f tells them apart: with a single pair (i, j) unconnected, f is
(e_i - e_j) / sqrt(2), and the mask is {i} or {j}, by the last bit of the solver. Nearly complete graphs can be like
that even where lambda_2 is well separated, so two precisions or two machines may disagree on their masks.

Each function raises ValueError, naming the argument, for unknown words, shapes and numbers that do not fit.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clipviz.errors import choose, finite_number
from clipviz.ops import expect_axes, expect_floats, normalize

AffinityKind = Literal["dot", "cosine"]
MaskRule = Literal["std", "mean"]
Side = Literal["peak", "border"]


def patch_affinity(patches: Tensor, tau: float = 0.2, kind: AffinityKind = "dot", eps: float = 1e-6) -> Tensor:
    """Thresholded similarity graph over the patches of each image, (B, N, W) -> (B, N, N), entries 1 or eps.

    Patches more similar than tau are connected. "dot" compares raw tokens (the official code), "cosine" unit-norm ones
    (what tau = 0.2 means in TokenCut). `eps` is the weight of the absent edges, so that the graph stays connected.
    """
    choose("affinity kind", kind, ("dot", "cosine"))
    expect_axes(patches=(patches, "BNW"))
    expect_floats(patches=patches)
    tokens = normalize(patches) if kind == "cosine" else patches
    similarity = tokens @ tokens.transpose(1, 2)
    absent = torch.full_like(similarity, finite_number("eps", eps, 0), dtype=patches.dtype)
    return absent.masked_fill_(similarity > finite_number("tau", tau), 1.0)


def normalized_laplacian(affinity: Tensor, eps: float = 1e-6) -> Tensor:
    """L = s (diag(d) - A) s with s = 1 / (sqrt(d) + eps), (B, N, N) -> (B, N, N)."""
    degree = affinity.sum(-1)
    scale = 1.0 / (degree.sqrt() + eps)
    laplacian = -affinity  # then in place: at N = 196 the copies took as long as a third of the eigenproblem
    laplacian.diagonal(dim1=-2, dim2=-1).add_(degree)
    return laplacian.mul_(scale[:, :, None]).mul_(scale[:, None, :])


class Spectrum(NamedTuple):
    """The part of the Laplacian's spectrum that the cut is made of."""

    fiedler: Tensor  # (B, N) float, unit norm, entry of largest magnitude positive
    eigenvalue: Tensor  # (B,) lambda_2 in [0, 2]; near 0 the graph almost falls apart, near 1 it is almost complete
    gap: Tensor  # (B,) float, lambda_3 - lambda_2; near 0 the Fiedler vector is arbitrary


def spectrum(affinity: Tensor) -> Spectrum:
    """Fiedler vector with its eigenvalue and spectral gap, of (B, N, N), symmetric, positive, N >= 2; no gradient.

    In the dtype of the input; the eigenproblem is solved in float64, because lambda_2 of a graph that nearly falls
    apart (1e-6) is below the noise of float32. All eigenvectors are computed to use one: solvers that compute no more
    were not faster on batches of this size (docs/speed.md).
    """
    expect_axes(affinity=(affinity, "BNN"))
    expect_floats(affinity=affinity)
    if affinity.shape[1] < 2:
        raise ValueError(f"affinity must be (B, N, N) with N >= 2, got {tuple(affinity.shape)}")
    try:
        values, vectors = _eigenvectors(normalized_laplacian(affinity.detach().double()))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError("affinity must hold positive, finite numbers; the eigenproblem has no solution") from error
    second = vectors[:, :, 1].to(affinity.dtype)  # rounded before it is turned, so that the promise holds to the bit
    peak = second.gather(1, second.abs().argmax(1, keepdim=True))
    fiedler = torch.where(peak < 0, -second, second)
    gap = values[:, 2] - values[:, 1] if values.shape[1] > 2 else torch.full_like(values[:, 1], torch.inf)
    return Spectrum(fiedler, values[:, 1].to(affinity.dtype), gap.to(affinity.dtype))


def _eigenvectors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`; on a CPU to the bit the same for any number of threads, each of which takes whole matrices.

    LAPACK would have all work on one after the other, meeting so often that a second thread was of no use, and where
    other programs had the processors, too, it took six to fifty times as long.
    """
    if matrices.device.type != "cpu":
        return torch.linalg.eigh(matrices)
    n_threads = torch.get_num_threads()
    n_parts = min(n_threads, 1 + matrices.numel() // 2**17)  # of fewer, a thread takes longer to start than to work
    try:
        with ThreadPoolExecutor(n_parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(_solved, matrices.chunk(n_parts)))
    finally:
        torch.set_num_threads(n_threads)  # else threads that are new to torch would be like these
    values, vectors = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(vectors)


def _solved(matrices: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrices)
    if values.isnan().any():  # LAPACK refuses a NaN in small matrices only
        raise torch.linalg.LinAlgError("NaN")  # type: ignore[attr-defined]
    return values, vectors


def fiedler_vector(affinity: Tensor) -> Tensor:
    """The Fiedler vector of `spectrum` alone, (B, N, N) -> (B, N)."""
    return spectrum(affinity).fiedler


def turn_to_side(fiedler: Tensor, grid: tuple[int, int], side: Side = "peak") -> Tensor:
    """Fiedler vectors (B, N) turned so that the chosen side of the cut is positive; `grid` is (h, w), row-major.

    "peak" leaves them: the side with the largest entry (TokenCut, the official code). "border" takes the side that less
    of the image's border lies on, the peak's where both have half of it: an object rarely fills the margin, whereas in
    a cluttered scene the largest entry may well be of the clutter.
    """
    choose("side", side, ("peak", "border"))
    expect_axes(fiedler=(fiedler, "BN"))
    expect_floats(fiedler=fiedler)
    height, width = grid
    if height * width != fiedler.shape[1]:
        raise ValueError(f"fiedler has {fiedler.shape[1]} patches, which a grid of {height} x {width} does not hold")
    if side == "peak":
        return fiedler
    margin = torch.ones(grid, dtype=torch.bool, device=fiedler.device)
    margin[1:-1, 1:-1] = False
    outer = fiedler[:, margin.flatten()] > 0
    return torch.where(2 * outer.sum(1, keepdim=True) > outer.shape[1], -fiedler, fiedler)


def foreground_mask(fiedler: Tensor, rule: MaskRule = "std") -> Tensor:
    """Patches on the salient side of the cut, (B, N) float, the foreground positive -> (B, N) bool.

    "std" keeps entries above the (unbiased) standard deviation, a small salient core, as the official code; "mean"
    keeps entries above the mean (TokenCut), the larger side.
    """
    choose("mask rule", rule, ("std", "mean"))
    expect_axes(fiedler=(fiedler, "BN"))
    expect_floats(fiedler=fiedler)
    if fiedler.shape[1] < 2:
        raise ValueError(f"fiedler must be (B, N) with N >= 2, got {tuple(fiedler.shape)}: one patch cannot be cut")
    return fiedler > (fiedler.std(-1, keepdim=True) if rule == "std" else fiedler.mean(-1, keepdim=True))


def edge_density(affinity: Tensor) -> Tensor:
    """Share of the off-diagonal pairs that are connected, (B, N, N) -> (B,) float in [0, 1]."""
    n = affinity.shape[-1]
    connected = (affinity > 0.5).sum((-2, -1)) - (affinity.diagonal(dim1=-2, dim2=-1) > 0.5).sum(-1)
    return connected.to(affinity.dtype) / (n * (n - 1))
