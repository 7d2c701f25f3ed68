"""Scores of predicted probabilities, by torchmetrics."""

import threading
import warnings
from typing import Any

import torch

from ptm_ray.core.types import Float, Int, Tensor
from ptm_ray.data.torchvision_guard import guard

#: Those that are one number; recall per class comes beside them.
NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "calibration_error")
#: Two threads that load it at once would declare the same operators twice.
_loads = threading.Lock()


def _torchmetrics() -> Any:
    """Its classification metrics. They take five seconds to load, with scipy and torchvision, which workers need not
    wait for: hence not at the top.
    """
    with _loads:
        guard()
        from torchmetrics.functional import classification

        return classification


def load_ahead() -> threading.Thread:
    """Begins to load what `score` needs, for a process that waits for others meanwhile; `join` what it returns, or call
    `score` at once.
    """
    thread = threading.Thread(target=_torchmetrics, daemon=True)
    thread.start()
    return thread


def _telling_nothing_if_diverged(probabilities: Tensor) -> tuple[Tensor, bool]:
    diverged = not bool(torch.isfinite(probabilities).all())
    return (torch.full_like(probabilities, 1 / probabilities.shape[1]) if diverged else probabilities), diverged


def hits(probabilities: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 for every image whose likeliest class is its own, 0 for the others."""
    predicted = _telling_nothing_if_diverged(probabilities)[0].argmax(1)
    return (predicted == labels).float()


def score(probabilities: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """All metrics, fractions in [0, 1]; `recall_<class>` for each class that the labels have.

    Balanced accuracy is the mean recall, AUC the macro mean of one-vs-rest, calibration error the expected one over
    15 bins. A class that the labels lack counts in none of the means (torchmetrics would count it as 0). `diverged` is
    1 for a network whose probabilities are not finite; it is scored as one that tells nothing apart.
    """
    tm = _torchmetrics()
    classes = probabilities.shape[1]
    probabilities, diverged = _telling_nothing_if_diverged(probabilities)
    predicted = probabilities.argmax(1)
    recall = tm.multiclass_recall(predicted, labels, classes, average="none")
    present = torch.bincount(labels, minlength=classes) > 0
    f1 = tm.multiclass_f1_score(predicted, labels, classes, average="none")
    with warnings.catch_warnings():
        # It warns of classes that the labels lack; they are left out below.
        warnings.filterwarnings("ignore", message="No positive samples")
        auc = tm.multiclass_auroc(probabilities, labels, classes, average="none")
    # torchmetrics gives a probability of exactly 1 (as softmax rounds it) a bin of its own, beside the 15.
    below_one = probabilities.clamp(max=1 - 1e-6)
    found = {
        "accuracy": tm.multiclass_accuracy(predicted, labels, classes, average="micro"),
        "balanced_accuracy": recall[present].mean(),
        "macro_f1": f1[present].mean(),
        "auc": auc[present].mean(),
        "diverged": float(diverged),
        "calibration_error": tm.multiclass_calibration_error(below_one, labels, classes, n_bins=15),
    }
    per_class = {f"recall_{label}": recall[label] for label in range(classes) if present[label]}
    return {name: float(value) for name, value in {**found, **per_class}.items()}
