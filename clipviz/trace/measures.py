"""Numbers of a trace that results, figures and report share: accuracy of the labels, and calibration."""

import numpy as np
import pandas as pd

from clipviz.trace.tables import Trace


def named_classes(logits: np.ndarray) -> np.ndarray:
    """The class (n,) with the largest of a source's logits (n, C); -1, none, where several share it."""
    is_top = logits == logits.max(1, keepdims=True)
    return np.where(is_top.sum(1) > 1, -1, is_top.argmax(1))


def label_accuracy(trace: Trace) -> float | None:
    """Share of right pseudo-labels of the last epoch; of a stream, whose epochs are slices, of all of them."""
    if trace.meta.get("labels_are") == "online":
        known = trace.samples[trace.samples["target"] >= 0]
        return float((known["pseudo_label"] == known["target"]).mean()) if len(known) else None
    return last_value(trace, "pseudo_label_accuracy")


def last_value(trace: Trace, metric: str) -> float | None:
    """The value of a metric when it was last measured; None when it never was."""
    values = trace.metric(metric).dropna()
    return float(values.iloc[-1]) if len(values) else None


def calibration_error(trace: Trace, epoch: int | None = None) -> float | None:
    """ECE in [0, 1] of the predictions on the evaluation images after an epoch (the last); None without targets."""
    rows = trace.predictions[trace.predictions["target"] >= 0]
    rows = rows[rows["epoch"] == (rows["epoch"].max() if epoch is None else epoch)]
    return calibration_bins(rows, "prediction")[3] if len(rows) else None


def calibration_bins(
    rows: pd.DataFrame, labels: str, n_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean confidence, accuracy and number of rows (n_bins,) by bins of confidence of equal width, and the ECE.

    ECE = sum over bins of (count / n) |accuracy - confidence|. `labels` is the column to compare with "target".
    """
    confidence = rows["confidence"].to_numpy(dtype=float)
    is_right = (rows[labels] == rows["target"]).to_numpy(dtype=float)
    # Bins are (low, high], as usual for ECE; a NaN of a diverged run falls into none.
    finite = np.isfinite(confidence)
    confidence, is_right = confidence[finite], is_right[finite]
    which = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    counts = np.bincount(which, minlength=n_bins)
    divisor = np.where(counts, counts, np.nan)
    mean_confidence = np.bincount(which, confidence, n_bins) / divisor
    accuracy = np.bincount(which, is_right, n_bins) / divisor
    ece = float(np.nansum(counts * np.abs(accuracy - mean_confidence)) / max(int(counts.sum()), 1))
    return mean_confidence, accuracy, counts, ece
