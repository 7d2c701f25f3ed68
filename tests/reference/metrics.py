"""Scores by plain loops over images."""


def recall(predicted, labels, label):
    mine = [p for p, true in zip(predicted, labels, strict=True) if true == label]
    return sum(p == label for p in mine) / len(mine) if mine else 0.0


def f1(predicted, labels, label):
    hit = sum(p == label == true for p, true in zip(predicted, labels, strict=True))
    wrong = sum((p == label) != (true == label) for p, true in zip(predicted, labels, strict=True))
    return 2 * hit / (2 * hit + wrong) if hit else 0.0


def auc(probabilities, labels, label):
    """How often an image of the class gets a higher probability of it than one of another class; ties half."""
    mine = [row[label] for row, true in zip(probabilities, labels, strict=True) if true == label]
    others = [row[label] for row, true in zip(probabilities, labels, strict=True) if true != label]
    wins = sum((a > b) + (a == b) / 2 for a in mine for b in others)
    return wins / (len(mine) * len(others))


def calibration_error(probabilities, labels, bins=15):
    found = {}
    for row, true in zip(probabilities, labels, strict=True):
        sure = max(row)
        found.setdefault(min(bins - 1, int(sure * bins)), []).append((sure, row.index(sure) == true))
    gaps = [abs(sum(s for s, _ in rows) - sum(hit for _, hit in rows)) for rows in found.values()]
    return sum(gaps) / len(labels)


def score_by_loops(probabilities, labels):
    predicted, present = [row.index(max(row)) for row in probabilities], sorted(set(labels))

    def mean(measure, first):
        return sum(measure(first, labels, label) for label in present) / len(present)

    return {
        "accuracy": sum(p == true for p, true in zip(predicted, labels, strict=True)) / len(labels),
        "balanced_accuracy": mean(recall, predicted),
        "macro_f1": mean(f1, predicted),
        "auc": mean(auc, probabilities),
        "diverged": 0.0,
        "calibration_error": calibration_error(probabilities, labels),
        **{f"recall_{label}": recall(predicted, labels, label) for label in present},
    }
