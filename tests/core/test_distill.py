"""One outer step: what it updates, what it skips, where the inner lr begins."""

import copy
import dataclasses
import math

import pytest
import torch

from ptm_ray.core import nets
from ptm_ray.core.distill import (
    BACK_OFF,
    SEARCH_TOLERANCE,
    Learner,
    OuterRates,
    Separation,
    outer_step,
    search_inner_lr,
)
from ptm_ray.core.matching import Easy, Matching
from ptm_ray.core.overlap import references, separation_gradient, split
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Position, from_noise, inner_batches
from ptm_ray.core.unroll import Student, matching_gradients

RATES = OuterRates("adam", 0.1, 0.02, 0.01, 0.0, 5.0)


@pytest.fixture
def case():
    """A network, a set, batches, and a target that the set's own student reaches with inner lr 0.05."""
    draw = Seeds(0).stream("test")
    network = nets.build("convnet", channels=1, resolution=8, classes=2, width=4, depth=1, norm="instance")
    synthetic = from_noise((1, 8, 8), 2, 2, 0.05, draw)
    start = network.init(draw)
    batches = inner_batches(4, 4, 5, (), draw)
    theta = start
    for _ in batches:
        leaf = theta.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(network.logits(leaf, synthetic.images), synthetic.classes)
        theta = leaf.detach() - 0.05 * torch.autograd.grad(loss, leaf)[0]
    return network, synthetic, start, theta, batches


def test_a_student_that_is_the_target_has_no_loss(case):
    network, synthetic, start, target, batches = case
    found = matching_gradients(network, start, target, synthetic.images, synthetic.labels(), synthetic.log_lr, batches)
    assert float(found.loss) < 1e-9


def test_the_first_inner_lr_is_the_largest_that_is_about_as_good_as_the_best(case):
    network, synthetic, start, target, batches = case
    guess = 0.4
    found = search_inner_lr(network, synthetic, [(start, target)], batches, guess)
    losses = {}
    for k in range(-1, 5):
        lr = guess * 2.0**-k
        log_lr = torch.tensor(lr).log()
        gradients = matching_gradients(network, start, target, synthetic.images, synthetic.labels(), log_lr, batches)
        losses[lr] = float(gradients.loss)
    good = [lr for lr, loss in losses.items() if loss <= min(losses.values()) + SEARCH_TOLERANCE]
    assert found == max(good)
    assert 0.04 < found < 0.07


def test_pace_scales_the_inner_lr_of_one_segment_and_leaves_what_is_learned_of_it_comparable(case):
    network, synthetic, start, target, batches = case
    slower, paced = copy.deepcopy(synthetic), copy.deepcopy(synthetic)
    slower.log_lr.add_(math.log(0.25))
    first = outer_step(network, Learner(slower, RATES), [Student(start, target, batches)])
    second = outer_step(network, Learner(paced, RATES), [Student(start, target, batches)], pace=0.25)
    assert first.loss == second.loss
    assert torch.equal(slower.images, paced.images)
    assert math.isclose(float(paced.log_lr - slower.log_lr), math.log(4), rel_tol=1e-6)


def loss_at(case, log_lr):
    network, synthetic, start, target, batches = case
    found = matching_gradients(
        network, start, 3 * target - 2 * start, synthetic.images, synthetic.labels(), torch.tensor(log_lr), batches
    )
    return float(found.loss)


def test_the_inner_lr_of_a_position_learns_by_the_derivative_of_the_loss_there(case):
    network, synthetic, start, target, batches = case
    rate, position, tilt, base = 0.5, Position(0.6, -0.3), torch.tensor([0.4, -0.2]), float(synthetic.log_lr)
    here = base + 0.4 * 0.6 + 0.2 * 0.3
    slope = (loss_at(case, here + 1e-2) - loss_at(case, here - 1e-2)) / 2e-2
    expected = loss_at(case, here)
    learner = Learner(synthetic, dataclasses.replace(RATES, optimiser="sgd", inner_lr=rate, by_segment=True))
    for known, value in zip(synthetic.tilts, tilt, strict=True):
        known.copy_(value)
    metrics = outer_step(network, learner, [Student(start, 3 * target - 2 * start, batches)], position=position)
    assert metrics.loss == pytest.approx(expected, rel=1e-6)
    assert metrics.inner_lr == pytest.approx(math.exp(here))
    assert float(synthetic.log_lr) - base == pytest.approx(-rate * slope, rel=1e-2)
    moved = torch.stack(synthetic.tilts) - tilt
    torch.testing.assert_close(moved, -rate * slope * torch.tensor(position), rtol=1e-2, atol=1e-6)


def test_without_it_one_inner_lr_serves_every_position(case):
    network, synthetic, start, target, batches = case
    learner = Learner(synthetic, RATES)
    outer_step(network, learner, [Student(start, 3 * target - 2 * start, batches)], position=Position(1.0, 0.5))
    assert synthetic.tilts == (0.0, 0.0)
    assert float(synthetic.log_lr_at(Position(1.0, 0.5))) == float(synthetic.log_lr)


def test_where_images_don_t_help_the_student_still_moves_a_little(case):
    network, synthetic, start, target, batches = case
    away = start - (target - start)
    found = search_inner_lr(network, synthetic, [(start, away)], batches, 0.4)
    assert found == 0.4 / 16


def test_where_every_student_diverges_the_first_inner_lr_is_the_smallest(case):
    network, synthetic, start, target, batches = case
    found = search_inner_lr(network, synthetic, [(start, target)], batches, 1e30)
    assert found == 1e30 / 16


def test_the_loss_falls_over_outer_steps(case):
    network, synthetic, start, target, batches = case
    target = start + 3 * (target - start)
    learner = Learner(synthetic, RATES)
    losses = [outer_step(network, learner, [Student(start, target, batches)]).loss for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_update_above_the_gate_is_skipped_and_nothing_else_changes(case):
    network, synthetic, start, target, batches = case
    # Away from where the student goes: the loss is above 1.
    away, before = 2 * start - target, (synthetic.images.clone(), float(synthetic.log_lr))
    for skip_above, skipped in ((1.0, True), (5.0, False)):
        learner = Learner(synthetic, dataclasses.replace(RATES, skip_above=skip_above))
        metrics = outer_step(network, learner, [Student(start, away, batches)])
        assert 1 < metrics.loss < 5
        assert metrics.skipped == skipped
        assert not metrics.diverged
        assert (torch.equal(synthetic.images, before[0]), float(synthetic.log_lr) == before[1]) == (skipped, skipped)


def test_parameters_that_were_easy_are_remembered_unless_the_update_was_skipped(case):
    network, synthetic, start, target, batches = case
    learner, away = Learner(synthetic, RATES), 2 * start - target
    outer_step(network, learner, [Student(start, away, batches)])
    assert learner.easy is None
    sizes = []
    for below in (1e-3, 1e-2, 1e-1):
        outer_step(network, learner, [Student(start, away, batches, Matching(Easy(learner.easy, below)))])
        sizes.append(int(learner.easy.sum()))
    assert 0 < sizes[0] < sizes[1] < sizes[2] < len(start)
    known = learner.easy.clone()
    learner.rates = dataclasses.replace(RATES, explode_at=0.0)
    assert outer_step(network, learner, [Student(start, away, batches, Matching(Easy(learner.easy, 1e3)))]).skipped
    assert torch.equal(learner.easy, known)
    held = learner.state_dict()
    learner.rates = RATES
    outer_step(network, learner, [Student(start, away, batches, Matching(Easy(learner.easy, 1e3)))])
    assert learner.easy.all()
    assert torch.equal(held["easy"], known)
    learner.load_state_dict(held)
    assert torch.equal(learner.easy, known)


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 40.0])
def test_an_update_that_exploded_is_skipped_and_the_inner_lr_backs_off(case, spoil):
    network, synthetic, start, target, batches = case
    synthetic.log_lr.fill_(math.log(spoil) if spoil != math.inf else math.inf)
    before = synthetic.images.clone(), float(synthetic.log_lr)
    metrics = outer_step(network, Learner(synthetic, RATES), [Student(start, target, batches)])
    assert metrics.skipped
    assert metrics.diverged
    assert torch.equal(synthetic.images, before[0])
    if math.isfinite(before[1]):
        assert float(synthetic.log_lr) == pytest.approx(before[1] + math.log(BACK_OFF))


def test_images_that_stand_still_are_not_touched(case):
    network, synthetic, start, target, batches = case
    before = synthetic.images.clone()
    moving = torch.tensor([0, 3])
    outer_step(network, Learner(synthetic, RATES), [Student(start, 2 * target - start, batches)], moving=moving)
    changed = (synthetic.images != before).flatten(1).any(1)
    assert changed.tolist() == [True, False, False, True]


def test_the_set_handed_on_averages_the_last_steps_and_forgets_the_start(case):
    network, synthetic, start, target, batches = case
    learner = Learner(synthetic, dataclasses.replace(RATES, ema_decay=0.9))
    seen = [synthetic.images.double().clone()]
    for _ in range(100):
        outer_step(network, learner, [Student(start, 2 * target - start, batches)])
        seen.append(synthetic.images.double().clone())
    decays = [min(0.9, n / (n + 9)) for n in range(1, 101)]
    weights = [math.prod(decays[n:]) * (1 if n == 0 else 1 - decays[n - 1]) for n in range(101)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(weight * images for weight, images in zip(weights, seen, strict=True))
    torch.testing.assert_close(learner.result().images.double(), expected, rtol=0, atol=1e-5)
    assert weights[0] < 1e-4
    assert not torch.equal(learner.result().images, synthetic.images)


#: Which rows move in a stretch of outer steps, and in how many.
STRETCHES = ((None, 12), ([0, 3], 7), (None, 5), ([1], 4), ([0, 1], 6))


def average_of_each(seen, moves):
    """In float64, row by row: an image's average moves where the image does, by how often it was moved."""
    averages, counts = seen[0].clone(), [0] * len(seen[0])
    for images, rows in zip(seen[1:], moves, strict=True):
        for row in range(len(images)) if rows is None else rows:
            counts[row] += 1
            decay = min(0.8, counts[row] / (counts[row] + 9))
            averages[row] = decay * averages[row] + (1 - decay) * images[row]
    return averages


@pytest.mark.parametrize("stop", [None, 15])
def test_averages_move_where_their_images_do_by_how_often_those_did(case, stop):
    network, synthetic, start, target, batches = case
    rates = dataclasses.replace(RATES, ema_decay=0.8)
    learner = Learner(synthetic, rates)
    moves = [rows for rows, steps in STRETCHES for _ in range(steps)]
    seen = [synthetic.images.double().clone()]
    for step, rows in enumerate(moves):
        before, student = learner.result().images, Student(start, 2 * target - start, batches)
        outer_step(network, learner, [student], moving=None if rows is None else torch.tensor(rows))
        standing = [] if rows is None else [row for row in range(4) if row not in rows]
        assert torch.equal(learner.result().images[standing], before[standing])
        seen.append(learner.synthetic.images.double().clone())
        if step == stop:
            state, learner = learner.state_dict(), Learner(copy.deepcopy(synthetic), rates)
            learner.load_state_dict(state)
    expected = average_of_each(seen, moves)
    torch.testing.assert_close(learner.result().images.double(), expected, rtol=0, atol=1e-5)


def test_a_count_for_all_images_as_earlier_versions_saved_it_is_each_image_s(case):
    _, synthetic, _, _, _ = case
    learner = Learner(synthetic, dataclasses.replace(RATES, ema_decay=0.9))
    learner.load_state_dict({**learner.state_dict(), "updates": 7})
    assert learner.updates.tolist() == [7, 7, 7, 7]


def separating_step(case, weight):
    network, synthetic, start, target, batches = case
    mine = copy.deepcopy(synthetic)
    halves = split(mine.classes, Seeds(1).stream("halves"))
    draw = Seeds(2).stream("real")
    real = references(network, target, {k: torch.randn(6, 1, 8, 8, generator=draw) for k in (0, 1)}, 1, draw)
    separation = Separation(halves, target, real, weight)
    learner = Learner(mine, OuterRates("sgd", 1.0, 0.0, 0.0, 0.0, 5.0))
    # Away from the target's own student, so that there is a matching gradient.
    mine.log_lr.add_(0.5)
    gradients = matching_gradients(network, start, target, mine.images, mine.labels(), mine.log_lr, batches)
    _, apart = separation_gradient(network, target, mine.images, mine.classes, halves, real)
    before = mine.images.clone()
    outer_step(network, learner, [Student(start, target, batches)], separation=separation, moving=halves.moving)
    return before - mine.images, gradients.images, apart, halves


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_separation_counts_by_its_weight_beside_the_matching_gradient_whatever_their_units(case, weight):
    moved, matching, apart, halves = separating_step(case, weight)
    rows = halves.moving
    climbed = matching[rows] - moved[rows]
    assert float(climbed.norm() / matching[rows].norm()) == pytest.approx(weight, rel=1e-4)
    along = torch.nn.functional.cosine_similarity(climbed.flatten(), apart[rows].flatten(), dim=0)
    assert float(along) == pytest.approx(1, abs=1e-4)
    assert not moved[halves.standing].any()
