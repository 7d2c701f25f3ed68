"""Comparisons of methods against numbers worked by hand and against slow versions."""

import itertools
import math

import numpy as np
import pytest

from ptm_ray.evaluation.comparison import (
    augmentation_robust_score,
    holm,
    label_robust_score,
    mean_ranks,
    paired_difference,
    robust_score,
    signed_rank_p,
)


def signed_rank_p_by_all_signs(differences):
    """Two-sided p: every sign of every rank is as likely as the other."""
    values = np.array([d for d in differences if d != 0])
    size = np.abs(values)
    ranks = [(size < s).sum() + ((size == s).sum() + 1) / 2 for s in size]
    positive = sum(r for r, v in zip(ranks, values, strict=True) if v > 0)
    middle = sum(ranks) / 2
    signs = list(itertools.product((0, 1), repeat=len(ranks)))
    sums = [sum(r for r, s in zip(ranks, chosen, strict=True) if s) for chosen in signs]
    return sum(abs(s - middle) >= abs(positive - middle) for s in sums) / len(signs)


def test_a_paired_difference_has_students_interval_over_the_pairs():
    found = paired_difference([3.0, 5.0, 7.0, 8.0], [2.0, 5.0, 4.0, 9.0])
    # Differences 1, 0, 3, -1: mean 0.75, standard deviation sqrt(8.75 / 3), t(0.975, 3) = 3.18245.
    half = 3.18245 * math.sqrt(8.75 / 3) / 2
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75 - half, 0.75 + half), abs=1e-4)
    assert (found.wins, found.ties, found.losses, found.pairs) == (2, 1, 1, 4)


def test_pairs_closer_than_a_tie_are_neither_won_nor_lost_but_count_in_the_mean():
    found = paired_difference([1.04, 2.06], [1.0, 2.0], tie=0.05)
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)
    assert found.mean == pytest.approx(0.05)


def test_one_pair_has_no_interval_and_none_is_refused():
    assert math.isnan(paired_difference([1.0], [0.0]).low)
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([], [])
    with pytest.raises(ValueError):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    "differences",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [0.3, -0.1, 2.0, 1.5, -0.7, 0.9, 4.1],
        [1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -2.0],
        [0.0, 1.2, -0.4, 0.0, 2.2, 0.9, 0.7, 3.0],
    ],
    ids=["all ahead", "mixed", "ties", "zeros"],
)
def test_signed_rank_p_is_that_of_all_signs(differences):
    assert signed_rank_p(differences) == pytest.approx(signed_rank_p_by_all_signs(differences))


def test_differences_that_are_equal_but_for_rounding_share_their_rank():
    rounded = [0.3, 0.1 + 0.2, -0.3, 0.5, 0.6, 0.7, -0.8]
    assert signed_rank_p(rounded) == pytest.approx(signed_rank_p_by_all_signs([0.3, 0.3, *rounded[2:]]))


def test_signed_ranks_say_nothing_of_few_pairs_and_1_of_equal_ones():
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert signed_rank_p([0.0] * 6) == 1.0
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)


def test_holm_as_worked_by_hand():
    # Smallest first: 0.01 · 4, 0.02 · 3, 0.03 · 2 (0.06, not below the one before), 0.6 · 1.
    found = holm({"c": 0.03, "a": 0.01, "d": 0.6, "b": 0.02})
    assert found == pytest.approx({"c": 0.06, "a": 0.04, "d": 0.6, "b": 0.06})
    assert list(found) == ["c", "a", "d", "b"]
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_rank_1_is_the_highest_score_and_equal_scores_share_theirs():
    scores = {"a": [0.9, 0.5, 0.7], "b": [0.8, 0.6, 0.1 + 0.2], "c": [0.1, 0.6, 0.3]}
    assert mean_ranks(scores) == pytest.approx({"a": 5 / 3, "b": (2 + 1.5 + 2.5) / 3, "c": (3 + 1.5 + 2.5) / 3})
    assert mean_ranks({}) == mean_ranks({"a": []}) == {}


def test_robust_scores_run_from_0_to_1():
    assert robust_score(-1) == 0
    assert robust_score(1) == 1
    assert robust_score(0) == pytest.approx(0.26894, abs=1e-5)
    with pytest.raises(ValueError, match="fractions"):
        label_robust_score(hlr=20.0, ior=10.0)


def test_label_robust_score_grows_with_ior_and_falls_with_hlr():
    # a = 0.5 · 0.4 − 0.5 · 0.2 = 0.1: (1.105171 − 0.367879) / 2.350402.
    assert label_robust_score(hlr=0.2, ior=0.4) == pytest.approx(0.313688, abs=1e-6)
    assert label_robust_score(hlr=0.2, ior=0.4, weight=1) == pytest.approx(robust_score(0.4))
    assert label_robust_score(hlr=0.2, ior=0.4, weight=0) == pytest.approx(robust_score(-0.2))


def test_augmentation_robust_score_is_of_both_gains():
    assert augmentation_robust_score(0.3, -0.1) == pytest.approx(robust_score(0.1))
    assert augmentation_robust_score(0.3, -0.1, weight=1) == pytest.approx(robust_score(0.3))
