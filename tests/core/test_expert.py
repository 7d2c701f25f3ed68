"""Snapshots are copies, taken where they should be; the same seed gives the same expert."""

import itertools

import torch

from ptm_ray.core import nets
from ptm_ray.core.expert import ExpertTraining, batches, flat_gradient, log_shares
from ptm_ray.core.trajectory import snapshot_steps


def train(seed=0, snapshot_steps=(0, 1, 5, 60), **changes):
    draw = torch.Generator().manual_seed(seed)
    network = nets.build("convnet", channels=1, resolution=8, classes=2, width=4, depth=2)
    images = torch.randn(20, 1, 8, 8, generator=draw)
    labels = (images.mean((1, 2, 3)) > 0).long()
    settings = {
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 8,
        "balanced": False,
        "ops": (),
    }
    start = network.init(draw)
    training = ExpertTraining(network, images, labels, **{**settings, **changes})
    thetas = [theta for (theta,) in training.snapshots([start], snapshot_steps, [draw])]
    return network, start, thetas, images, labels


def test_snapshot_0_is_the_initialisation_and_differs_from_snapshot_1():
    _, start, thetas, _, _ = train()
    assert torch.equal(thetas[0], start)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(thetas))


def test_snapshots_are_copies():
    _, start, thetas, _, _ = train()
    thetas[0].zero_()
    assert start.abs().sum() > 0
    assert len({theta.data_ptr() for theta in thetas}) == len(thetas)


def test_an_expert_learns():
    network, start, thetas, images, labels = train()
    accuracy = [float((network.logits(t, images).argmax(1) == labels).float().mean()) for t in (start, thetas[-1])]
    assert accuracy[1] > 0.9 > accuracy[0]


def test_the_same_seed_gives_the_same_expert_and_another_seed_another():
    assert torch.equal(train(seed=3)[2][-1], train(seed=3)[2][-1])
    assert not torch.equal(train(seed=3)[2][-1], train(seed=4)[2][-1])


def test_the_flat_gradient_is_that_of_the_worst_point_nearby_less_what_is_across_it():
    """On ½ θᵀAθ, whose gradient is known, one number at a time."""
    a = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 5.0]], dtype=torch.float64)
    theta = torch.tensor([0.7, -1.2, 0.1], dtype=torch.float64)
    found = flat_gradient(lambda point: a @ point, theta, 0.2, 0.6)
    here = [sum(a[i, j] * theta[j] for j in range(3)) for i in range(3)]
    norm = sum((theta[i] * here[i]) ** 2 for i in range(3)) ** 0.5
    moved = [theta[i] + 0.2 * theta[i] ** 2 * here[i] / norm for i in range(3)]
    there = [sum(a[i, j] * moved[j] for j in range(3)) for i in range(3)]
    share = sum(h * t for h, t in zip(here, there, strict=True)) / sum(t * t for t in there)
    expected = [t - 0.6 * (h - share * t) for h, t in zip(here, there, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat_gradient(lambda point: a @ point, theta, 0.0, 0.0), a @ theta)


def test_a_flat_expert_learns_too_on_another_way():
    network, start, thetas, images, labels = train(flat_radius=0.05, flat_gap=0.3)
    assert torch.equal(thetas[0], start)
    assert not torch.equal(thetas[-1], train()[2][-1])
    assert float((network.logits(thetas[-1], images).argmax(1) == labels).float().mean()) > 0.9


def test_logit_adjustment_is_a_gradient_of_adjusted_logits():
    labels = torch.tensor([0] * 6 + [1] * 2)
    shift = log_shares(labels, 3)
    assert torch.allclose(shift, torch.tensor([6 / 8, 2 / 8, 1 / 8]).log())
    network, start, thetas, images, _ = train(snapshot_steps=(0, 1), batch_size=20, shift=2 * shift[:2])
    leaf = start.clone().requires_grad_()
    targets = (images.mean((1, 2, 3)) > 0).long()
    adjusted = network.logits(leaf, images) + 2 * shift[:2]
    loss = -adjusted.log_softmax(1)[torch.arange(20), targets].mean()
    loss.backward()
    torch.testing.assert_close(thetas[1], start - 0.1 * leaf.grad)


def test_balanced_batches_draw_each_class_equally_often():
    labels = torch.tensor([0] * 95 + [1] * 5)
    rows = batches(labels, 50, True, torch.Generator().manual_seed(0))
    share = torch.stack([labels[next(rows)].float().mean() for _ in range(100)]).mean()
    assert 0.45 < share < 0.55


def test_snapshot_steps_are_strictly_increasing_and_end_at_the_last_step():
    assert snapshot_steps(100, 4, 1.0) == [0, 25, 50, 75, 100]
    early = snapshot_steps(400, 20, 1.5)
    assert early[0] == 0
    assert early[-1] == 400
    assert all(a < b for a, b in itertools.pairwise(early))
    assert early[1] - early[0] < early[-1] - early[-2]
