"""Table and pictures of a sweep."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ptm_ray.report.sweep import importance, over_seeds, write_sweep

METRIC = "validation_balanced_accuracy"
SETTINGS = ("schedule.kind", "overlap.weight", "images.lr")


def rows():
    draw = np.random.default_rng(0)
    for trial, kind in enumerate(["progress", "count"] * 8):
        weight, lr = float(trial // 2 % 4), float(10 ** draw.uniform(-3, -1))
        score = 0.5 + (0.2 if kind == "count" else 0.0) + 0.01 * weight
        yield {
            "trial": f"t{trial}",
            "schedule.kind": kind,
            "overlap.weight": weight,
            "images.lr": lr,
            METRIC: score,
            "outer_step": 10,
            "distillation_s": 3.0,
            "error": None,
        }


def failed():
    return {
        **next(rows()),
        "trial": "broken",
        METRIC: None,
        "outer_step": None,
        "distillation_s": None,
        "error": "a | b",
    }


def test_table_and_pictures(tmp_path):
    write_sweep(tmp_path, [*rows(), failed()], SETTINGS, METRIC)
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert len(table) == 17
    assert table[-1]["error"] == "a | b"
    text = (tmp_path / "trials.md").read_text()
    assert text.splitlines()[2].startswith("| count | 3 |")
    assert "failed: a \\| b |" in text.splitlines()[18]
    for name in ("parallel", "importance", "weight"):
        shown = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert shown.std() > 10, name


def test_repetitions_are_summed_up_and_compared_with_weight_0_seed_by_seed():
    settings = ("schedule.kind", "overlap.weight", "seed")
    scores = {("count", 0.0): (0.5, 0.6), ("count", 4.0): (0.55, 0.69), ("random", 4.0): (0.3, None)}
    rows = [
        dict(zip((*settings, METRIC), (*values, seed, score), strict=True))
        for values, of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]
    assert over_seeds(rows, settings, METRIC)[2:] == [
        "| count | 4 | 62.0 ± 9.9 | 2 | +7.0 (-18.4 to +32.4) |",
        "| count | 0 | 55.0 ± 7.1 | 2 |  |",
        "| random | 4 | 30.0 | 1 |  |",
    ]


def test_importance_is_the_share_of_variance_between_values():
    shares = importance(list(rows()), SETTINGS, METRIC)
    scores = np.array([row[METRIC] for row in rows()])
    for name in SETTINGS[:2]:
        values = [row[name] for row in rows()]
        means = {v: scores[[x == v for x in values]].mean() for v in values}
        between = np.var([means[v] for v in values])
        assert shares[name] == pytest.approx(between / scores.var())
    assert next(iter(shares)) == "schedule.kind"
    assert 0 <= shares["images.lr"] <= 1


def test_too_few_trials_make_a_table_and_no_claims(tmp_path):
    few = [next(rows()), failed()]
    write_sweep(tmp_path, few, SETTINGS, METRIC)
    assert {path.name for path in tmp_path.iterdir()} == {"trials.parquet", "trials.md"}
    assert importance(few, SETTINGS, METRIC) == {}
