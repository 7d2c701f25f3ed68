"""Which candidate is kept: the latest, unless an earlier one is better beyond doubt."""

import random

import numpy as np
import pytest
import torch

from ptm_ray.core.synthetic import Synthetic
from ptm_ray.evaluation.metrics import hits, score
from ptm_ray.stages.selection import Selection, balanced_accuracy, measures, standard_error

LABELS = torch.tensor([0] * 40 + [1] * 10)


class Shuffled:
    """Knows the hits of every candidate beforehand and hands them out in any order, some later."""

    def __init__(self, script, order):
        self._script, self._order, self._waiting = script, random.Random(order), []

    def submit(self, tag, candidate):
        self._waiting.append((tag, self._script[tag]))

    def collect(self, wait):
        self._order.shuffle(self._waiting)
        count = len(self._waiting) if wait else self._order.randint(0, len(self._waiting))
        out, self._waiting = self._waiting[:count], self._waiting[count:]
        return out


def candidate(value):
    images = torch.full((2, 1, 4, 4), float(value))
    return Synthetic(images, classes=torch.tensor([0, 1]), log_lr=torch.tensor(0.0), num_classes=2)


def kept_of(script, order=0):
    selection = Selection(Shuffled(script, order), LABELS)
    for step in range(len(script)):
        selection.submit(step, candidate(step))
        selection.collect(wait=False)
    selection.collect(wait=True)
    assert [step for step, _ in selection.scores] == list(range(len(script)))
    return selection.kept.outer_step


def right(first, second):
    """Hits of a set that knows so many of the 40 images of class 0, and so many of the 10 of class 1."""
    return torch.cat([(torch.arange(40) < first).float(), (torch.arange(10) < second).float()])


def test_a_set_that_scores_below_what_it_must_is_not_kept_though_chance_would_have_it():
    script = [right(30, 8), right(29, 8), right(29, 8)]
    assert kept_of(script[:2]) == 1
    selection = Selection(Shuffled(script, 0), LABELS)
    before = selection.score_now(0, candidate(0))
    assert selection.score_now(1, candidate(1), at_least=before) < before
    assert selection.kept.outer_step == 0
    assert selection.latest == 1
    selection.score_now(2, candidate(2))
    assert selection.kept.outer_step == 2


def test_the_balanced_accuracy_is_that_of_the_metrics():
    probabilities = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).softmax(1)
    wanted = score(probabilities, LABELS)["balanced_accuracy"]
    assert balanced_accuracy(hits(probabilities, LABELS), LABELS) == pytest.approx(wanted)


def test_sets_are_compared_by_accuracy_balanced_or_not_and_by_the_class_that_is_known_worst():
    found = measures(right(30, 2), LABELS)
    assert found == {"balanced_accuracy": pytest.approx(0.475), "accuracy": 0.64, "worst_recall": pytest.approx(0.2)}


def test_the_hits_of_a_network_that_diverged_score_as_the_metrics_say():
    probabilities = torch.full((50, 2), torch.nan)
    wanted = score(probabilities, LABELS)["balanced_accuracy"]
    assert balanced_accuracy(hits(probabilities, LABELS), LABELS) == pytest.approx(wanted) == 0.5


def test_the_standard_error_is_the_spread_over_resampled_images():
    draw = np.random.default_rng(0)
    difference = draw.choice([-1.0, -0.5, 0.0, 0.5, 1.0], 50, p=[0.1, 0.1, 0.4, 0.2, 0.2])
    resampled = [
        np.mean([draw.choice(difference[:40], 40).mean(), draw.choice(difference[40:], 10).mean()])
        for _ in range(20_000)
    ]
    # The bootstrap divides by n where the estimate divides by n − 1: 5 % in a class of ten.
    found = standard_error(torch.tensor(difference), LABELS)
    assert found == pytest.approx(np.std(resampled), rel=0.06)


def test_a_class_of_one_image_adds_no_variance():
    assert standard_error(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1])) == pytest.approx(0.25)


def test_the_latest_is_kept_where_chance_explains_what_it_lacks():
    assert kept_of([right(30, 7), right(30, 6)]) == 1


def test_an_earlier_one_is_kept_where_it_is_better_beyond_doubt():
    assert kept_of([right(40, 10), right(20, 5)]) == 0
    assert kept_of([right(10, 2), right(40, 10), right(20, 5), right(38, 10), right(10, 2)]) == 3


def test_a_slow_decline_does_not_slip_through():
    # Each is as good as the one before it, but the last is far from the best.
    slope = [right(40 - 2 * k, 10 - k // 2) for k in range(16)]
    kept = kept_of(slope)
    assert 0 < kept < 8


@pytest.mark.parametrize("order", range(5))
def test_the_order_in_which_scorers_answer_changes_nothing(order):
    draw = torch.Generator().manual_seed(1)
    script = [(torch.rand(50, generator=draw) < 0.6).float() for _ in range(12)]
    assert kept_of(script, order) == kept_of(script, 99)
