"""The matching gradient is exact: against full unrolling, and against finite differences, in float64."""

import pytest
import torch

from ptm_ray.core import nets, unroll
from ptm_ray.core.augment import OPS
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import inner_batches
from ptm_ray.core.unroll import LIBRARY_BYTES, Plan, Student, graph_bytes, matching_gradients, mean_gradients, plan_for
from tests.reference.unroll import fully_unrolled


def problem(steps, *, width=4, resolution=8, classes=3, ipc=2, ops=tuple(OPS), batch=4, seed=0, norm="instance"):
    """A small network, an expert-like target, soft labels, drawn batches."""
    draw = torch.Generator().manual_seed(seed)
    network = nets.build("convnet", channels=3, resolution=resolution, classes=classes, width=width, depth=2, norm=norm)
    start = network.init(draw, torch.float64)
    target = start + 0.1 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
    images = torch.randn(classes * ipc, 3, resolution, resolution, generator=draw, dtype=torch.float64)
    labels = torch.randn(classes * ipc, classes, generator=draw, dtype=torch.float64).softmax(1)
    log_lr = torch.tensor(0.05, dtype=torch.float64).log()
    return network, start, target, images, labels, log_lr, inner_batches(len(images), batch, steps, ops, draw)


def relative_error(ours, reference):
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize(("kept_share", "spacing"), [(0.0, 1), (0.5, 1), (1.0, 1), (0.0, 3), (0.2, 6), (0.0, 100)])
def test_gradients_agree_with_full_unrolling(steps, kept_share, spacing):
    case = problem(steps)
    ours = matching_gradients(*case, plan=Plan(round(kept_share * steps), spacing))
    loss, images, labels, log_lr = fully_unrolled(*case)
    torch.testing.assert_close(ours.loss, loss, rtol=1e-12, atol=0)
    assert relative_error(ours.images, images) < 1e-9
    assert relative_error(ours.labels, labels) < 1e-9
    assert relative_error(ours.log_lr, log_lr) < 1e-9


@pytest.mark.parametrize("plan", [Plan(0, 1), Plan(7, 1), Plan(2, 3)])
def test_teslas_gradient_is_that_of_steps_whose_images_move_no_later_one(plan):
    case = problem(7)
    ours, reference = matching_gradients(*case, plan=plan, exact=False), fully_unrolled(*case, exact=False)
    for found, expected in zip(ours, reference, strict=True):
        assert relative_error(found, expected.detach()) < 1e-9
    assert relative_error(ours.images, fully_unrolled(*case)[1]) > 1e-3


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_augmentation_is_differentiated_exactly(op):
    case = problem(3, ops=(op,))
    ours, reference = matching_gradients(*case), fully_unrolled(*case)
    assert relative_error(ours.images, reference[1]) < 1e-9


@pytest.mark.parametrize("norm", ["group", "none"])
def test_other_norms_are_differentiated_exactly(norm):
    case = problem(4, norm=norm, width=32)
    assert relative_error(matching_gradients(*case).images, fully_unrolled(*case)[1]) < 1e-9


@pytest.mark.parametrize("at_once", [0, 2**20])
def test_several_students_mean_gradient_whether_their_steps_are_augmented_at_once_or_one_by_one(monkeypatch, at_once):
    monkeypatch.setattr(unroll, "SEEN_AT_ONCE", at_once)
    network, start, target, images, labels, log_lr, first = problem(12, ops=("flip", "rotate", "cutout", "contrast"))
    # The second's batches are of another size and not augmented, and its target is its own.
    second = inner_batches(len(images), 3, 4, (), Seeds(1).stream("x"))
    students = [Student(start, target, first), Student(start, 2 * target, second)]
    ours = mean_gradients(network, students, images, labels, log_lr, plan=Plan(3, 2))
    alone = [fully_unrolled(network, s.start, s.target, images, labels, log_lr, s.batches) for s in students]
    for found, *expected in zip(ours, *alone, strict=True):
        assert relative_error(found, sum(expected).detach() / 2) < 1e-9


def test_gradients_agree_with_finite_differences():
    case = network, start, target, images, labels, log_lr, batches = problem(3, ipc=1, batch=3)
    ours = matching_gradients(*case)

    def loss_at(images=images, labels=labels, log_lr=log_lr):
        return float(matching_gradients(network, start, target, images, labels, log_lr, batches).loss)

    step = 1e-6
    for value, gradient, name in (
        (images, ours.images, "images"),
        (labels, ours.labels, "labels"),
        (log_lr, ours.log_lr, "log_lr"),
    ):
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(5), dtype=value.dtype)
        ahead, behind = (loss_at(**{name: value + sign * step * direction}) for sign in (1, -1))
        torch.testing.assert_close(
            (ahead - behind) / (2 * step), float((gradient * direction).sum()), rtol=1e-5, atol=1e-9
        )


def test_a_step_rows_may_repeat_in_later_steps_and_be_left_out():
    network, start, target, images, labels, log_lr, _ = problem(1)
    batches = inner_batches(2, 2, 3, (), Seeds(0).stream("x"))
    ours = matching_gradients(network, start, target, images, labels, log_lr, batches)
    assert torch.equal(ours.images[2:], torch.zeros_like(ours.images[2:]))
    assert ours.images[:2].abs().sum() > 0


def test_memory_budget_decides_how_many_graphs_are_kept():
    network, start, _, images, labels, _, batches = problem(10)
    one = graph_bytes(network, start, images, labels, batches[0])
    arguments = (network, start, images, labels, batches)
    assert plan_for(0, *arguments).keep == 0
    vector = start.numel() * 8
    assert 0 < plan_for(LIBRARY_BYTES + 10 * one + 20 * vector, *arguments).keep < 10
    assert plan_for(10**12, *arguments).keep == 10


def test_where_parameters_outweigh_a_graph_few_of_them_are_stored():
    network, start, _, images, labels, _, batches = problem(100, width=64, ipc=1, batch=1)
    assert start.numel() * 8 * 100 > graph_bytes(network, start, images, labels, batches[0])
    assert plan_for(0, network, start, images, labels, batches) == Plan(0, 10)
