"""The tables of `benchmarks.saliency` in Markdown, from its CSV files: for its output and for docs/saliency.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

STAGES = ("before", "after")
COLUMNS = {
    ("pointing_game", "object"): "bird: pointing",
    ("part_mass", "object"): "bird: mass",
    ("pointing_game", "discriminative"): "parts: pointing",
    ("part_mass", "discriminative"): "parts: mass",
    ("part_rank", "discriminative"): "parts: rank",
    ("deletion_auc", ""): "deletion",
}
COMPARED = {
    ("part_mass", "object"): "bird: mass",
    ("pointing_game", "object"): "bird: pointing",
    ("pointing_game", "discriminative"): "parts: pointing",
    ("part_rank", "discriminative"): "parts: rank",
    ("part_rank", "pair"): "look-alike's part: rank",
    ("deletion_auc", ""): "deletion",
}
SETTINGS = ["tokens", "affinity", "tau", "sign", "rule"]
MEASURED = ["soap_mass", "soap_pointing", "mask_iou", "edge_density"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def by_kind(scores: pd.DataFrame) -> str:
    """Kind x metric: the mean over all domains and seeds in `scores`, before → after adaptation."""
    means = scores.groupby(["kind", "metric", "region", "stage"])["mean"].mean()
    rows = []
    for kind in dict.fromkeys(scores["kind"]):
        cells = [_before_after(means, (kind, *key)) for key in COLUMNS]
        rows.append([str(kind), *cells])
    return table(["map", *COLUMNS.values()], rows)


def by_sanity(scores: pd.DataFrame) -> str:
    """Kind x rank correlation with the map of a scrambled model, with its interval over images."""
    rows = [(row.kind, f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]") for row in scores.itertuples()]
    return table(["map", "rank correlation with the scrambled model's"], rows)


def _before_after(means: pd.Series, key: tuple[str, ...]) -> str:
    found = [means.get((*key, stage)) for stage in STAGES]
    return "" if None in found else " → ".join(f"{value:.2f}" for value in found)


def against_attention(paired: pd.DataFrame) -> str:
    """SOAP minus the last block's CLS attention in every domain, with intervals; the better one's name where it counts.

    Args:
        paired: rows of kind "soap - cls_attention", as `benchmarks.saliency` writes them.
    """
    cells = paired.set_index(["domain", "stage", "metric", "region"])
    rows = []
    for domain in dict.fromkeys(paired["domain"]):
        for stage in STAGES:
            found = [cells.loc[(domain, stage, *key)] for key in COMPARED]
            rows.append([str(domain), stage, *map(_difference, found, COMPARED)])
    return table(["domain", "adaptation", *COMPARED.values()], rows)


def _difference(row: pd.Series, key: tuple[str, str]) -> str:
    text = f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    if row["low"] <= 0 <= row["high"]:
        return text
    higher_is_better = key[0] != "deletion_auc"
    return f"**{text}**" if (row["mean"] > 0) == higher_is_better else f"*{text}*"


def mean_over_seeds(study: pd.DataFrame) -> pd.DataFrame:
    """What of the study of SOAP's settings is kept: one row for each domain, stage and setting."""
    kept = study.assign(tau=study["tau"].astype(str)).groupby(["domain", "stage", *SETTINGS, "own"], sort=False)
    return kept[[*MEASURED, "place_share"]].mean().reset_index()


def by_side(study: pd.DataFrame, graphs: Sequence[tuple[str, str]] = (("cosine", "0.4"), ("dot", "0.2"))) -> str:
    """Mass of SOAP on the bird (IoU of the mask with it) for the sides of the cut, before → after.

    Args:
        study: what `mean_over_seeds` returns.
        graphs: affinity and tau; tokens are raw and the mask is cut at the standard deviation.
    """
    raw = study[(study["tokens"] == "raw") & (study["rule"] == "std")]
    cells = raw.set_index(["affinity", "tau", "sign", "domain", "stage"])
    domains = list(dict.fromkeys(study["domain"]))
    rows = []
    for affinity, tau in graphs:
        for sign in dict.fromkeys(study["sign"]):
            found = ([cells.loc[(affinity, tau, sign, domain, stage)] for stage in STAGES] for domain in domains)
            texts = [" → ".join(f"{row['soap_mass']:.2f} ({row['mask_iou']:.2f})" for row in pair) for pair in found]
            rows.append([f"{affinity} > {tau}", str(sign), *texts])
    return table(["graph", "side", *domains], rows)


def best_settings(study: pd.DataFrame, stage: str, top: int = 8) -> str:
    """The settings with the most of SOAP's mass on the bird, mean over domains, and the method's own."""
    rows = study[study["stage"] == stage].groupby([*SETTINGS, "own"], sort=False)[MEASURED].mean().reset_index()
    rows = pd.concat([rows[rows["own"]], rows.nlargest(top, "soap_mass")]).drop_duplicates()
    head = [*SETTINGS, *MEASURED]
    return table(head, ([str(v) if isinstance(v, str) else f"{v:.3f}" for v in row] for row in rows[head].values))
