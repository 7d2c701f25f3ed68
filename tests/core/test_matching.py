"""HoP-TM's loss: which parameters count, what the shape of a way is, and that gradients through both are exact."""

import pytest
import torch

from ptm_ray.core.matching import (
    LEAST_PATH,
    Easy,
    Matching,
    Shape,
    angle_cosines,
    matching_loss,
    shape_potential,
)
from ptm_ray.core.unroll import Plan, matching_gradients
from tests.core.test_unroll import problem, relative_error
from tests.reference import matching as slow
from tests.reference.unroll import fully_unrolled

STEPS = 7
PLANS = [Plan(0, 1), Plan(STEPS, 1), Plan(3, 1), Plan(0, 3), Plan(2, 4)]


def vectors(count, seed=0, params=200):
    return torch.randn(count, params, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_loss(easy, shape, start, target):
    """Of all states of a student; `easy` is what counted before and the threshold."""

    def loss(states):
        errors = (states[-1].detach() - target) ** 2
        counted = torch.ones(len(start), dtype=torch.bool)
        if easy is not None:
            counted = slow.counting(easy[0], errors, (start - target) ** 2, easy[1], LEAST_PATH)
        found = slow.masked_loss(states[-1], start, target, counted)
        if shape is not None:
            way = (start, states[shape.after], states[-1])
            found = found + shape.weight * slow.shape_potential(way, (start, shape.middle, target))
        return found

    return loss


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("easy", "after"), [(True, None), (False, 1), (False, 3), (False, STEPS - 1), (True, 4)])
def test_gradients_agree_with_full_unrolling(plan, exact, easy, after):
    case = problem(STEPS)
    start, target = case[1:3]
    before = vectors(1, params=len(start))[0] > 1.5
    middle = start + 0.05 * vectors(1, seed=1, params=len(start))[0]
    shape = None if after is None else Shape(middle, after, 30.0)
    known = (before, 0.3) if easy else None
    found = Matching(Easy(*known) if easy else None, shape)
    ours = matching_gradients(*case, plan=plan, exact=exact, matching=found)
    reference = fully_unrolled(*case, exact=exact, loss=expected_loss(known, shape, start, target))
    for mine, expected in zip(ours, reference, strict=True):
        assert relative_error(mine, expected.detach()) < 1e-9
    assert relative_error(ours.images, fully_unrolled(*case, exact=exact)[1]) > 1e-2


@pytest.mark.parametrize("below", [0.0, 1e-4, 0.05, 0.5, 5.0])
def test_those_count_that_are_easy_or_have_been(below):
    start, target, student, chance = vectors(4)
    before = chance > 2
    found = Easy(before, below).grow(student, start, target)
    errors, path = (student - target) ** 2, (start - target) ** 2
    assert torch.equal(found, slow.counting(before, errors, path, below, LEAST_PATH))
    assert bool((found >= before).all())
    assert (found.sum() > before.sum()) == (below > 0)
    torch.testing.assert_close(
        matching_loss(student, start, target, found), slow.masked_loss(student, start, target, found)
    )


def test_the_mask_only_grows_until_all_count():
    easy, sizes = Easy(None, 0.02), []
    for seed in range(300):
        known = easy.counting
        counting = easy.grow(*vectors(3, seed))
        assert known is None or bool((counting >= known).all())
        sizes.append(int(counting.sum()))
    assert 0 < sizes[0] < sizes[20] < sizes[-1] == 200


def test_what_is_easy_depends_on_no_unit_of_the_parameters():
    start, target, student = vectors(3)
    whole, small = (Easy(None, 0.1).grow(k * student, k * start, k * target) for k in (1.0, 1e-3))
    assert 0 < whole.sum() < 200
    assert torch.equal(whole, small)


def test_where_nothing_is_easy_the_smallest_errors_count_and_no_more_than_it_takes():
    start, target, student = vectors(3)
    counting = Easy(None, 0.0).grow(student, start, target)
    errors, path = (student - target) ** 2, (start - target) ** 2
    assert errors[counting].max() < errors[~counting].min()
    largest = errors.masked_fill(~counting, -1).argmax()
    carried = path[counting].sum() / path.sum()
    assert carried >= LEAST_PATH > carried - path[largest] / path.sum()
    assert torch.isfinite(Matching(Easy(None, 0.0)).loss(start, target, student))


def test_parameters_that_the_expert_did_not_move_make_no_loss_of_their_own():
    start, target, student = vectors(3)
    target[:50] = student[:50] = start[:50]
    easy = Easy(None, 1e-12)
    found = Matching(easy).loss(start, target, student)
    assert bool(easy.counting[:50].all())
    assert torch.isfinite(found)
    assert found > 0


def test_the_potential_is_the_mean_over_all_cosines_of_all_differences():
    for seed in range(20):
        student, expert = vectors(6, seed, params=3).view(2, 3, 3)
        found = shape_potential(angle_cosines(*student), angle_cosines(*expert))
        torch.testing.assert_close(found, slow.shape_potential(student, expert))
        assert found > 0


def test_the_cosines_are_those_of_the_triangle_s_angles():
    start, middle, end = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]])
    # 135 degrees in the middle; law of cosines for sides 1, √2 and √5 at the others.
    expected = torch.tensor([4 / (2 * 5**0.5), -(0.5**0.5), 6 / (2 * 10**0.5)])
    torch.testing.assert_close(angle_cosines(start, middle, end), expected)


def test_a_way_of_the_same_shape_has_no_potential_wherever_it_leads_and_however_long_it_is():
    expert = vectors(3, params=5)
    turn, _ = torch.linalg.qr(vectors(5, 1, params=5))
    student = 0.1 * expert @ turn + 4.0
    assert float(shape_potential(angle_cosines(*student), angle_cosines(*expert))) < 1e-20
    student[1] += 0.3 * (student[2] - student[0])
    assert float(shape_potential(angle_cosines(*student), angle_cosines(*expert))) > 1e-4


def test_a_student_that_never_moved_has_a_finite_gradient():
    start, target, middle = vectors(3)
    leaves = [start.clone().requires_grad_() for _ in range(2)]
    loss = Matching(shape=Shape(middle, 2, 0.5)).loss(start, target, *leaves)
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(loss, leaves))
