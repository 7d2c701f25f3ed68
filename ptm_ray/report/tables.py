"""Scores as text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

KINDS = {"synthetic": "synthetic", "random": "random real", "full": "full data"}
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "calibration_error": "calibration error",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; a bar inside a cell would end it and is escaped."""
    lines = [head, *rows]
    shown = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    return [shown[0], "|" + "---|" * len(head), *shown[1:]]


def plain(name: str) -> str:
    """A name as Markdown shows it, on one line: whatever somebody called a class, there it does nothing."""
    # An underscore within a word does nothing anyway, and is easier to read alone.
    return re.sub(r"[\\`*\[\]<&~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(name.split()))


def cell(summary: dict[str, float | int]) -> str:
    """Mean ± standard deviation, in percent; the mean alone where there is one value, which has no deviation."""
    mean = f"{100 * summary['mean']:.1f}"
    return mean if summary["n"] < 2 else f"{mean} ± {100 * summary['std']:.1f}"


def score_rows(scores: dict[str, Any]) -> list[list[str]]:
    """A row for every kind of set, its cells in the order of COLUMNS."""
    return [[KINDS[kind], *(cell(metrics[name]) for name in COLUMNS)] for kind, metrics in scores.items()]


def markdown(scores: dict[str, Any]) -> str:
    """The scores as a Markdown table, in percent."""
    return "\n".join(table(["trained on", *COLUMNS.values()], score_rows(scores)))


def recalls(scores: dict[str, Any], class_names: list[str]) -> str:
    """Recall per class as a Markdown table, in percent; a dash for a class of which nothing was tested."""

    def shown(metrics: dict[str, Any], label: int) -> str:
        recall = metrics.get(f"recall_{label}")
        return "–" if recall is None else cell(recall)

    rows = [
        [plain(name), *(shown(metrics, label) for metrics in scores.values())] for label, name in enumerate(class_names)
    ]
    return "\n".join(table(["class", *(KINDS[kind] for kind in scores)], rows))
