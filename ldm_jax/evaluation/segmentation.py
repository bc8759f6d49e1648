"""Agreement of label maps: the confusion matrix, and intersection over union, which ignores what is right by absence."""

import numpy as np


def confusion_matrix(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: how many pixels of class i (row) were called j. Truths outside [0, classes), such as
    255 for "unlabelled", don't count. Matrices of batches add up."""
    truth, found = np.asarray(truth).reshape(-1), np.asarray(found).reshape(-1)
    if truth.shape != found.shape:
        raise ValueError(f"{truth.size} pixels of truth and {found.size} found")
    counted = (truth >= 0) & (truth < classes)
    truth, found = truth[counted].astype(np.int64), found[counted].astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < classes:
        raise ValueError(f"classes {found.min()} to {found.max()} were found, but there are {classes}")
    return np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean over classes of intersection / union; classes that neither map has are left out."""
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    if not union.any():
        raise ValueError("no pixel was counted")
    return float((intersection[union > 0] / union[union > 0]).mean())


def pixel_accuracy(confusion: np.ndarray) -> float:
    """The share of pixels that were called right, in [0, 1], of a `confusion_matrix`; nan where none was counted."""
    return float(np.trace(confusion) / confusion.sum())
