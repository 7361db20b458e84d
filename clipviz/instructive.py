"""Which images are instructive: one definition for what is recorded, drawn and filtered. Arrays only, no torch.

Positions are those in the arrays (n,), the most telling image first. A target of -1 is unknown.
"""

from collections import Counter

import numpy as np


def confidently_wrong(prediction: np.ndarray, confidence: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Positions of the mistakes, the most confident first."""
    wrong = np.flatnonzero((target >= 0) & (prediction != target))
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def least_sure(confidence: np.ndarray) -> np.ndarray:
    """All positions by rising confidence."""
    return np.argsort(confidence, kind="stable")


def worth_learning_from(prediction: np.ndarray, confidence: np.ndarray, target: np.ndarray, n: int) -> np.ndarray:
    """Positions of at most n images to learn from: the surest mistakes, at most two for a pair of classes.

    Without targets: the images with the least confidence.
    """
    if (target < 0).all():
        return least_sure(confidence)[:n]
    seen, chosen = Counter[tuple[int, int]](), list[int]()
    for i in confidently_wrong(prediction, confidence, target):
        pair = int(target[i]), int(prediction[i])
        seen[pair] += 1
        if seen[pair] <= 2:
            chosen.append(int(i))
    return np.array(chosen[:n], dtype=np.int64)
