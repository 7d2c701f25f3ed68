"""Scores as text."""

from typing import Any

KINDS = {"synthetic": "synthetic", "random": "random real", "full": "full data"}
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "calibration_error": "calibration error",
}


def cell(summary: dict[str, float | int]) -> str:
    """Mean ± standard deviation, in percent."""
    return f"{100 * summary['mean']:.1f} ± {100 * summary['std']:.1f}"


def score_rows(scores: dict[str, Any]) -> list[list[str]]:
    """A row for every kind of set, its cells in the order of COLUMNS."""
    return [[KINDS[kind], *(cell(metrics[name]) for name in COLUMNS)] for kind, metrics in scores.items()]


def markdown(scores: dict[str, Any]) -> str:
    """The scores as a Markdown table, in percent."""
    head = ["trained on", *COLUMNS.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in score_rows(scores)])


def recalls(scores: dict[str, Any], class_names: list[str]) -> str:
    """Recall per class as a Markdown table, in percent."""
    kinds = list(scores)
    lines = ["| class | " + " | ".join(KINDS[kind] for kind in kinds) + " |", "|---|" + "---|" * len(kinds)]
    for label, name in enumerate(class_names):
        cells = " | ".join(cell(scores[kind][f"recall_{label}"]) for kind in kinds)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
