"""Attacks on canaries against slow versions, and the bound on ε against mechanisms whose ε is known."""

import itertools
import math

import numpy as np
import pytest

from ptm_ray.evaluation import privacy


def test_auc_is_the_share_of_pairs_that_are_in_order():
    draw = np.random.default_rng(0)
    inside, outside = draw.integers(0, 6, 30).astype(float), draw.integers(-2, 4, 25).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
    assert privacy.auc(inside, outside) == pytest.approx(np.mean(pairs))


def test_those_that_are_named_lie_above_all_but_one_in_a_hundred_of_the_others():
    outside = np.arange(200.0)
    # Two false positives are allowed: 199 and 198. Above 197 lie three of these four.
    assert privacy.true_positives(np.array([197.0, 197.5, 198.5, 300.0]), outside) == 0.75
    # Of fifty others none may be taken for one.
    assert privacy.true_positives(np.array([49.0, 49.5]), np.arange(50.0)) == 0.5


def respond(epsilon, number, draw):
    """Randomised response: each coin is told as it fell with chance e^ε / (1 + e^ε), which is ε-private and no less."""
    members = draw.random(number) < 0.5
    truly = draw.random(number) < 1 / (1 + math.exp(-epsilon))
    return np.where(truly, members, ~members).astype(float), members


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_bound_lies_below_the_mechanisms_own_epsilon_but_for_one_time_in_twenty(epsilon):
    draw = np.random.default_rng(int(10 * epsilon))
    bounds = [privacy.epsilon_bound(*respond(epsilon, 200, draw)) for _ in range(200)]
    # A binomial of 200 tries with chance 0.05 stays at or below 19 with chance 0.997.
    assert sum(bound > epsilon for bound in bounds) <= 19


def test_the_bound_comes_near_where_there_is_much_to_see():
    assert privacy.epsilon_bound(*respond(1.0, 20_000, np.random.default_rng(1))) == pytest.approx(1.0, abs=0.1)
    # All right: r coins fall right with chance 1 - confidence at (1 - confidence)^(1/r).
    members = np.arange(200) % 2 == 0
    chance = (0.05 / len(privacy.GUESSED)) ** (1 / 200)
    assert privacy.epsilon_bound(members.astype(float), members) == pytest.approx(math.log(chance / (1 - chance)))


def test_an_attack_that_is_sure_of_few_refutes_more_than_its_average_would():
    draw = np.random.default_rng(2)
    members = draw.random(400) < 0.5
    scores = draw.normal(size=400)
    known = np.flatnonzero(members)[:30]
    scores[known] += 100
    # Guessing all is hardly better than a coin; guessing a sixteenth at each end is right about one half of them.
    assert privacy.epsilon_bound(scores, members) > 0.3
    everyone = privacy.epsilon_bound(np.where(scores > np.median(scores), 1.0, 0.0), members)
    assert everyone < 0.3


def test_the_interval_of_an_auc_holds_what_it_is_drawn_from_in_19_of_20():
    draw = np.random.default_rng(5)
    # Exponentials of rates 1 and 3: the first is larger with chance 3 / 4.
    pairs = [(draw.exponential(1, 20), draw.exponential(1 / 3, 25)) for _ in range(400)]
    limits = [privacy.auc_interval(privacy.auc(*pair), 20, 25) for pair in pairs]
    # A binomial of 400 tries with chance 0.95 stays within 365 and 396 with chance 0.9994.
    assert 365 <= sum(low <= 0.75 <= high for low, high in limits) <= 396


def test_the_interval_of_an_auc_leaves_doubt_at_both_ends_and_is_symmetric():
    low, high = privacy.auc_interval(1.0, 12, 13)
    assert 0.75 < low < 0.95
    assert high == 1.0
    assert privacy.auc_interval(0.0, 12, 13) == pytest.approx((0.0, 1 - low))
    assert privacy.auc_interval(1.0, 120, 130)[0] > 0.97


def test_membership_holds_all_of_it_and_its_interval_holds_the_auc():
    draw = np.random.default_rng(3)
    members = draw.random(300) < 0.5
    found = privacy.membership(draw.normal(size=300) + members, members)
    # Two normals one standard deviation apart: Φ(1 / √2).
    assert found.auc == pytest.approx(0.76, abs=0.05)
    assert found.auc_low < found.auc < found.auc_high
    assert found.auc_high - found.auc_low == pytest.approx(0.11, abs=0.03)
    assert (found.canaries, found.members) == (300, members.sum())
    with pytest.raises(ValueError, match="0 of 3 canaries were in"):
        privacy.membership(np.zeros(3), np.zeros(3, dtype=bool))


def test_confidence_is_the_logit_of_the_labels_probability_even_where_it_is_nearly_1():
    shares = np.array([[[0.2, 0.5, 0.3], [1.0, 1e-9, 1e-9]], [[0.4, 0.4, 0.2], [1.0, 1e-9, 1e-9]]])
    found = privacy.confidences(shares, np.array([1, 0]))
    assert found == pytest.approx([(math.log(0.5 / 0.5) + math.log(0.4 / 0.6)) / 2, math.log(1 / 2e-9)])
    assert np.isfinite(privacy.confidences(np.array([[[1.0, 0.0]]]), np.array([1]))).all()


def test_a_network_that_diverged_tells_nothing():
    sound = np.array([[[0.9, 0.1], [0.3, 0.7]]])
    found = privacy.confidences(np.concatenate([sound, np.full((1, 2, 2), np.nan)]), np.array([0, 0]))
    assert found == pytest.approx(privacy.confidences(sound, np.array([0, 0])) / 2)


def test_copies_are_those_that_all_distances_at_once_show():
    draw = np.random.default_rng(6)
    real = draw.integers(0, 256, (privacy.AT_ONCE + 30, 4, 4, 3), dtype=np.uint8)
    unseen = draw.integers(0, 256, (privacy.UNSEEN, 4, 4, 3), dtype=np.uint8)
    made = np.concatenate([real[-4:], unseen[:4], draw.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8) // 2 + 64])
    nearest = [[min(np.linalg.norm(a.astype(float) - b) for b in real) for a in images] for images in (made, unseen)]
    expected = np.array(nearest[0]) < np.quantile(nearest[1], 0.01)
    assert 4 <= expected.sum() < len(made)
    assert privacy.copies(made, real, unseen).tolist() == expected.tolist()


def test_a_copy_is_nearest_and_found_and_a_mixture_is_not():
    draw = np.random.default_rng(4)
    real, unseen = 255 * draw.random((60, 50)), 255 * draw.random((400, 50))
    made = np.stack([real[7] + 3 * draw.random(50), 255 * draw.random(50), real.mean(0) + 255 * draw.normal(size=50)])
    assert privacy.copies(made, real, unseen).tolist() == [True, False, False]
    near = privacy.nearness(real, made)
    assert near.argmax() == 7
    by_hand = [[math.dist(a, b) for b in made] for a in real]
    assert near == pytest.approx([-min(row) / (sum(row) / 3) for row in by_hand])


def test_copies_are_found_where_unseen_images_are_copies_as_well():
    draw = np.random.default_rng(8)
    real, unseen = (draw.integers(0, 256, (200, 4, 4, 1), dtype=np.uint8) for _ in range(2))
    made = np.concatenate([real[:3], draw.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)])
    made[1] ^= 1
    expected = privacy.copies(made, real, unseen)
    assert expected[:3].all()
    for number in (10, 150, 200):
        known = np.concatenate([real[:number], unseen[number:]])
        found = privacy.copies(made, real, known)
        assert found[:3].all()
        assert found[3:].sum() <= 2
    # Of twenty to begin with, the few that are left aside change little.
    assert privacy.copies(made, real, np.concatenate([real[:10], unseen])).tolist() == expected.tolist()


def test_what_an_easy_score_explains_is_taken_off_by_as_much_as_it_counts():
    draw = np.random.default_rng(9)
    easy, own = draw.normal(size=50), draw.normal(size=50)
    left = privacy.beyond(3 * easy + 7 + own, easy)
    assert left == pytest.approx(privacy.beyond(own, easy))
    assert left @ easy == pytest.approx(0, abs=1e-9)
    assert left.sum() == pytest.approx(0, abs=1e-9)
    # Of networks that told nothing, nothing is taken off but the mean.
    assert privacy.beyond(own, np.zeros(50)) == pytest.approx(own - own.mean())


def test_the_residual_finds_members_where_spreads_differ_and_the_difference_does_not():
    draw = np.random.default_rng(10)
    members = draw.random(400) < 0.5
    # Networks of a set are a third as sure as those of all images.
    easy = draw.normal(0, 6, 400)
    sure = easy / 3 + draw.normal(0, 1, 400) + members
    by_difference, by_residual = (privacy.membership(s, members) for s in (sure - easy, privacy.beyond(sure, easy)))
    # Two normals one standard deviation apart: Φ(1 / √2) = 0.76; 1 apart of √(1 + 4²): 0.57.
    assert by_residual.auc == pytest.approx(0.76, abs=0.05)
    assert by_difference.auc == pytest.approx(0.57, abs=0.05)
    assert by_residual.epsilon > 0.3
    assert by_difference.epsilon < 0.1


def test_the_residual_of_scores_that_know_no_coin_refutes_no_more_often_than_it_may():
    draw = np.random.default_rng(11)
    refuted = 0
    for _ in range(200):
        easy = draw.normal(size=100)
        refuted += privacy.epsilon_bound(privacy.beyond(easy + draw.normal(size=100), easy), draw.random(100) < 0.5) > 0
    # A binomial of 200 tries with chance 0.05 stays at or below 19 with chance 0.997.
    assert refuted <= 19
