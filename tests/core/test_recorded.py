"""Recorded steps do what plain ones do; on a GPU too, where there is one."""

import pytest
import torch

from ptm_ray.core import nets, replay, sgd
from ptm_ray.core.batch import Batch, seen, seen_at_once
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.matching import Easy, Matching
from ptm_ray.core.sgd import InTraining, RecordedSgd, Sgd, Step
from ptm_ray.core.synthetic import inner_batches
from ptm_ray.core.unroll import RECOMPUTE, Plan, Student, matching_gradients

OPS = ("flip", "scale", "crop", "cutout", "brightness", "saturation")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def network(**changes):
    sizes = {"channels": 2, "resolution": 15, "classes": 3, "width": 8, "depth": 2}
    return nets.build("convnet", **{**sizes, **changes})


def random_set(device="cpu", seed=1):
    draw = stream(seed)
    images = torch.randn(7, 2, 15, 15, generator=draw, dtype=torch.float64)
    return images.to(device), torch.rand(7, 3, generator=draw, dtype=torch.float64).softmax(1).to(device)


def test_all_batches_at_once_are_each_of_them():
    images, _ = random_set()
    batches = inner_batches(7, 4, 12, OPS, stream())
    assert len({batch.draw.op for batch in batches}) > 3
    assert torch.equal(seen_at_once(batches, images), torch.cat([seen(batch, images) for batch in batches]))
    # Of any size each, and not augmented.
    mixed = [*inner_batches(7, 3, 2, (), stream()), *inner_batches(7, 5, 2, OPS, stream())]
    assert torch.equal(seen_at_once(mixed, images), torch.cat([seen(batch, images) for batch in mixed]))


def close(ours, theirs):
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.cpu(), expected.cpu(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("plan", [RECOMPUTE, Plan(3, 2), Plan(5, 1)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_recorded_matching_step_is_the_plain_one_whatever_it_is_given(device, norm, plan, exact):
    net = network(norm=norm)
    images, labels = random_set()
    find, log_lr = replay.Replays(net), torch.tensor(-2.0, dtype=torch.float64)
    # The second is a replay; of the third, with fewer steps, there is no recording yet; the fourth is one again.
    for seed, steps in ((0, 5), (1, 5), (2, 4), (3, 5)):
        draw = stream(seed)
        start = net.init(draw).double()
        target = start + 0.1 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
        batches = inner_batches(7, 4, steps, OPS, draw)
        given = start, target, (seed + 1) * images, labels.roll(seed, 0), log_lr + 0.1 * seed
        expected = matching_gradients(net, *given, batches, plan=plan, exact=exact)
        start, target, *of_set = (tensor.to(device) for tensor in given)
        moved = [Batch(batch.rows.to(device), batch.draw) for batch in batches]
        found = find([Student(start, target, moved)], *of_set, plan=plan, exact=exact)
        assert all(tensor.device.type == device for tensor in found)
        close(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_several_students_are_recorded_side_by_side(device):
    net = network()
    images, labels = random_set()
    find, log_lr = replay.Replays(net), torch.tensor(-2.0, dtype=torch.float64)
    for seed, count in ((0, 3), (1, 3), (2, 2)):
        draw, students, each = stream(seed), [], []
        for steps in (4, 5, 4)[:count]:
            start = net.init(draw).double()
            target = start + 0.1 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
            batches = inner_batches(7, 4, steps, OPS, draw)
            each.append(matching_gradients(net, start, target, images, labels, log_lr, batches))
            moved = [Batch(batch.rows.to(device), batch.draw) for batch in batches]
            students.append(Student(start.to(device), target.to(device), moved))
        found = find(students, images.to(device), labels.to(device), log_lr.to(device))
        close(found, [sum(parts) / count for parts in zip(*each, strict=True)])


def test_what_depends_on_values_is_not_recorded(monkeypatch):
    net = network()
    (images, labels), start = random_set(), net.init(stream()).double()
    given = images, labels, torch.tensor(-2.0, dtype=torch.float64)
    batches = inner_batches(7, 4, 3, OPS, stream())
    monkeypatch.setattr(replay, "_Step", None)
    found = replay.Replays(net)([Student(start, start + 0.1, batches, Matching(Easy(None, 0.5)))], *given)
    expected = matching_gradients(net, start, start + 0.1, *given, batches, matching=Matching(Easy(None, 0.5)))
    close(found, expected)


def steps_of(count, seed):
    """As many steps, of batches of four."""
    return [Step(batch, 0.1 / (k + 1)) for k, batch in enumerate(inner_batches(7, 4, count, OPS, stream(seed)))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_networks_side_by_side_become_what_each_becomes_alone(device, norm):
    net = network(norm=norm)

    def gradient_at(theta, images, labels, state):
        return loss_gradient(net, theta, images, labels, keep=False, state=state).gradient

    def fresh(count, device):
        thetas = [net.init(stream(k)).double().to(device) for k in range(count)]
        states = [{key: v.double() if v.is_floating_point() else v for key, v in net.fresh_state(device).items()}
                  for _ in range(count)]  # fmt: skip
        return [InTraining.fresh(*both) for both in zip(thetas, states, strict=True)]

    alone, recorded = (kind(gradient_at, 0.9, 1e-3) for kind in (Sgd, RecordedSgd))
    # More than a recording has, and not a multiple; the same again from what they are; another number of networks.
    many = sgd.RECORDED_STEPS * 2 + 3
    ours, theirs = fresh(3, device), fresh(3, "cpu")
    for seed in (0, 10):
        steps = [steps_of(many, seed + k) for k in range(3)]
        recorded.run(ours, *random_set(device, seed), steps)
        alone.run(theirs, *random_set("cpu", seed), steps)
    ours += fresh(1, device)
    theirs += fresh(1, "cpu")
    recorded.run(ours[-1:], *random_set(device), [steps_of(4, 5)])
    alone.run(theirs[-1:], *random_set(), [steps_of(4, 5)])
    for mine, expected in zip(ours, theirs, strict=True):
        close(mine.tensors(), expected.tensors())
    assert len({float(one.theta.sum()) for one in theirs}) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpu_comes_near_to_the_processors_gradient_in_any_precision(precision, channels):
    net, exact = network(channels=channels, precision=precision, width=32), network(channels=channels, width=32)
    draw = stream()
    images = torch.randn(7, channels, 15, 15, generator=draw)
    start = net.init(draw)
    given = start, start + 0.1 * torch.randn(start.shape, generator=draw), images, torch.eye(3).repeat(3, 1)[:7]
    batches = inner_batches(7, 7, 2, (), draw)
    expected = matching_gradients(exact, *(t.double() for t in given), torch.tensor(-2.0, dtype=torch.float64), batches)
    start, target, *of_set = (tensor.cuda() for tensor in given)
    found = replay.Replays(net)([Student(start, target, batches)], *of_set, torch.tensor(-2.0, device="cuda"))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(mine.cpu().double().flatten(), theirs.flatten(), dim=0)
        assert cosine > (0.999 if precision == "float32" else 0.97)
