"""Scores against plain loops; many networks become one row with Student's interval."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptm_ray.evaluation.metrics import NAMES, score
from ptm_ray.evaluation.protocol import Job, jobs, repetitions, summarise
from tests.reference.metrics import score_by_loops


def predictions(classes, n=60, seed=0, present=None, levels=None):
    """Probabilities that know something, and labels; `levels` rounds them, so that there are ties."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(present or classes, (n,), generator=draw)
    logits = torch.randn(n, classes, generator=draw) + torch.nn.functional.one_hot(labels, classes)
    if levels:
        logits = (logits * levels).round() / levels
    return logits.softmax(1), labels


@pytest.mark.parametrize(
    "case",
    [
        {"classes": 2},
        {"classes": 2, "levels": 1},
        {"classes": 3, "seed": 1},
        {"classes": 8, "n": 200},
        {"classes": 5, "present": 3},
    ],
    ids=["binary", "ties", "three classes", "eight classes", "two classes absent"],
)
def test_every_metric_agrees_with_plain_loops(case):
    probabilities, labels = predictions(**case)
    found, expected = score(probabilities, labels), score_by_loops(probabilities.tolist(), labels.tolist())
    assert found.keys() == expected.keys()
    assert set(NAMES) < found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_a_perfect_prediction_scores_one_and_a_constant_one_chance():
    labels = torch.tensor([0, 1, 2] * 5)
    perfect = score(torch.eye(3)[labels], labels)
    assert [perfect[name] for name in NAMES] == pytest.approx([1, 1, 1, 1, 0], abs=1e-5)
    constant = score(torch.tensor([[0.5, 0.3, 0.2]]).expand(15, 3), labels)
    assert constant["balanced_accuracy"] == pytest.approx(1 / 3)
    assert constant["auc"] == pytest.approx(0.5)
    assert [constant[f"recall_{label}"] for label in range(3)] == [1, 0, 0]


def test_a_probability_of_exactly_one_shares_the_last_bin():
    probabilities, labels = torch.tensor([[1.0, 0.0], [0.99, 0.01]]), torch.tensor([1, 0])
    assert score(probabilities, labels)["calibration_error"] == pytest.approx((1.0 + 0.99 - 1) / 2, abs=1e-5)


def test_an_interval_is_the_mean_and_students_quantile_of_its_error():
    rows = [{"auc": value} for value in (0.70, 0.74, 0.78, 0.90)]
    found = summarise(rows)["auc"]
    std = math.sqrt((0.08**2 + 0.04**2 + 0.00**2 + 0.12**2) / 3)
    assert found["mean"] == pytest.approx(0.78)
    assert found["std"] == pytest.approx(std)
    assert found["low"] == pytest.approx(0.78 - 3.182 * std / 2, abs=1e-4)
    assert found["high"] == pytest.approx(0.78 + 3.182 * std / 2, abs=1e-4)
    assert found["n"] == 4


def density(t, freedom):
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 30, 60])
def test_the_interval_holds_95_percent_of_students_distribution(freedom):
    values = np.random.default_rng(freedom).normal(size=freedom + 1)
    found = summarise([{"auc": value} for value in values])["auc"]
    reach = (found["high"] - found["mean"]) * len(values) ** 0.5 / found["std"]
    steps = 4000
    inside = sum(density((k + 0.5) * reach / steps, freedom) for k in range(steps)) * 2 * reach / steps
    assert inside == pytest.approx(0.95, abs=1e-4)


def test_one_network_has_no_interval():
    assert summarise([{"auc": 0.7, "accuracy": 0.5}])["auc"] == {"mean": 0.7, "std": 0.0, "n": 1}


def of(kind, scores):
    """What each network scores: by draw, architecture and seed."""
    return [
        (Job(kind, draw, name, (seed,)), {"auc": value})
        for draw, name, values in scores
        for seed, value in enumerate(values)
    ]


def test_networks_of_one_draw_are_one_finding_as_they_share_its_images():
    scores = of("random", [(0, "convnet", (0.60, 0.62, 0.64)), (1, "convnet", (0.70, 0.72, 0.74))])
    found = summarise(repetitions(scores))["auc"]
    # Of 0.62 and 0.72: deviation 0.1 / √2; 12.706 is Student's for one degree of freedom, 0.05 the error of the mean.
    assert found["mean"] == pytest.approx(0.67)
    assert found["std"] == pytest.approx(0.1 / math.sqrt(2))
    assert (found["low"], found["high"]) == pytest.approx((0.67 - 12.706 * 0.05, 0.67 + 12.706 * 0.05), abs=1e-4)
    assert found["n"] == 2


def test_architectures_are_averaged_before_seeds_and_draws_are_compared():
    # Far apart from each other, and each nearly the same for all seeds.
    scores = of("synthetic", [(0, "convnet", (0.80, 0.82)), (0, "vit", (0.50, 0.52))])
    assert [row["auc"] for row in repetitions(scores)] == pytest.approx([0.65, 0.67])
    drawn = of(
        "random", [(0, "convnet", (0.8, 0.7)), (0, "vit", (0.4, 0.5)), (1, "convnet", (0.7,)), (1, "vit", (0.6,))]
    )
    assert [row["auc"] for row in repetitions(drawn)] == pytest.approx([0.6, 0.65])
    alone = summarise(repetitions(of("full", [(0, "convnet", (0.8,)), (0, "vit", (0.6,))])))["auc"]
    assert alone == {"mean": pytest.approx(0.7), "std": 0.0, "n": 1}


def test_jobs_are_every_network_and_seed_and_random_images_are_drawn_anew():
    todo = jobs(("synthetic", "random", "full"), ("convnet", "vit"), 3, 4)
    assert len(todo) == len(set(todo))
    assert Counter(job.kind for job in todo) == {"synthetic": 6, "random": 24, "full": 6}
    assert {job.draw for job in todo if job.kind == "random"} == {0, 1, 2, 3}
    assert {(job.network, job.seeds) for job in todo} == {(name, (s,)) for name in ("convnet", "vit") for s in range(3)}


def test_jobs_of_several_networks_are_the_same_networks_in_the_same_order():
    asked = ("synthetic", "random", "full"), ("convnet", "vit"), 5, 2
    parts = jobs(*asked, together=2)
    assert [job.seeds for job in parts[:3]] == [(0, 1), (2, 3), (4,)]
    alone = [replace(job, seeds=(seed,)) for job in parts for seed in job.seeds]
    assert alone == jobs(*asked)
    assert [job.seeds for job in jobs(("full",), ("convnet",), 3, 1, together=8)] == [(0, 1, 2)]


def test_a_network_that_diverged_is_said_to_have_and_tells_nothing_apart():
    probabilities, labels = predictions(3)
    probabilities[5] = torch.nan
    found = score(probabilities, labels)
    assert found["diverged"] == 1
    assert found["auc"] == 0.5
    assert score(*predictions(3))["diverged"] == 0
