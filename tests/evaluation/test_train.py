"""An evaluation network learns what is there to learn, and the same from the same generator."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ptm_ray.core import nets
from ptm_ray.core.nets.convnet import ConvNet
from ptm_ray.core.params import Network
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.whitening import fit
from ptm_ray.evaluation.metrics import score
from ptm_ray.evaluation.protocol import train_and_predict
from ptm_ray.evaluation.train import Training, TrainRecipe, predict, train, trainer

OPS = ("crop", "cutout", "brightness", "contrast")


def recipe(**changes):
    usual = {"steps": 30, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 32, "ops": OPS}
    return TrainRecipe(**{**usual, **changes})


def network(norm="instance", classes=2):
    return nets.build("convnet", channels=3, resolution=16, classes=classes, width=8, depth=2, norm=norm)


def toy(n=40, seed=0):
    """Dark images and bright ones, under noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    shade = (labels * 2.0 - 1).view(-1, 1, 1, 1)
    return 0.5 * shade + torch.randn(n, 3, 16, 16, generator=draw), labels


@pytest.fixture(scope="module")
def cells(real_data):
    """Blood cells at 16 pixels: 60 of each of three classes, and 40 fresh ones of each."""
    with np.load(real_data / "bccd_32.npz") as file:
        pixels, labels = torch.tensor(file["train_images"]), torch.tensor(file["train_labels"][:, 0]).long()
    small = F.avg_pool2d(pixels.float().permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    rows = torch.stack([torch.nonzero(labels == label).flatten()[:100] for label in range(3)])
    seen, fresh = rows[:, :60].flatten(), rows[:, 60:].flatten()
    forward = fit(small[seen]).forward
    return (forward(small[seen]), labels[seen]), (forward(small[fresh]), labels[fresh])


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_network_learns_real_cells_far_above_chance(cells, norm):
    (images, labels), fresh = cells
    targets = F.one_hot(labels, 3).float()
    (found,) = train_and_predict(network(norm, 3), [(images, targets)], fresh[0], recipe(steps=60), [0])
    scores = score(found, fresh[1])
    assert scores["balanced_accuracy"] > 0.8
    assert scores["auc"] > 0.9


def test_several_sets_train_one_network_one_after_another_each_for_its_part_of_the_steps():
    images, labels = toy()
    targets = F.one_hot(labels, 2).float()
    parts = [(images[:10], targets[:10]), (images, targets)]
    draw = Seeds(3).stream("evaluation network")
    first = train(network(), *parts[0], recipe(steps=4), [draw])
    (second,) = train(network(), *parts[1], recipe(steps=4), [draw], first)
    (found,) = train_and_predict(network(), parts, images, recipe(steps=8), [3])
    assert torch.equal(found, predict(network(), second, images))
    (alone,) = train_and_predict(network(), parts[1:], images, recipe(steps=8), [3])
    assert not torch.equal(found, alone)


def test_the_same_generator_trains_the_same_network_and_another_another():
    images, labels = toy()
    targets = F.one_hot(labels, 2).float()
    first, again, other = (
        train(network(), images, targets, recipe(steps=5), [Seeds(0).stream("network", k)])[0] for k in (0, 0, 1)
    )
    assert torch.equal(first.theta, again.theta)
    assert not torch.equal(first.theta, other.theta)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_training_that_goes_on_in_other_processes_ends_at_the_same_parameters(norm):
    images, labels = toy()
    targets, net, asked = F.one_hot(labels, 2).float(), network(norm), recipe(steps=7)
    seeds = [Seeds(0).stream("network", k) for k in range(2)]
    whole = train(net, images, targets, asked, [Seeds(0).stream("network", k) for k in range(2)])
    training = Training.begin(net, len(images), asked, seeds, images.device)
    for most in (3, 1, 9):
        training = pickle.loads(pickle.dumps(training))
        training.advance(trainer(net, asked, images.device), images, targets, most)
    for one, other in zip(training.networks, whole, strict=True):
        assert all(torch.equal(*both) for both in zip(one.tensors(), other.tensors(), strict=True))
    training.advance(trainer(net, asked, images.device), images, targets, 1)
    assert torch.equal(training.networks[0].theta, whole[0].theta)


def test_training_is_sgd_with_momentum_and_a_late_tenth_of_the_step_size():
    images, labels = toy(8)
    targets, net = F.one_hot(labels, 2).float(), network()
    steps, lr, momentum, decay = 10, 0.05, 0.9, 5e-4
    (found,) = train(net, images, targets, recipe(steps=steps, ops=()), [torch.Generator().manual_seed(3)])
    theta = net.init(torch.Generator().manual_seed(3)).requires_grad_()
    slow = torch.optim.SGD([theta], lr=lr, momentum=momentum, weight_decay=decay)
    later = torch.optim.lr_scheduler.MultiStepLR(slow, [7], gamma=0.1)
    for _ in range(steps):
        slow.zero_grad()
        F.cross_entropy(net.logits(theta, images), labels).backward()
        slow.step()
        later.step()
    torch.testing.assert_close(found.theta, theta.detach(), rtol=1e-3, atol=1e-5)


def test_soft_labels_are_learned_as_they_are():
    images, _ = toy(8)
    targets = torch.tensor([0.7, 0.3]).expand(8, 2)
    (trained,) = train(network(), images, targets, recipe(steps=200, ops=()), [torch.Generator().manual_seed(0)])
    torch.testing.assert_close(predict(network(), trained, images), targets, atol=0.03, rtol=0)


def test_a_prediction_does_not_depend_on_its_neighbours_or_the_chunk():
    images, labels = toy()
    net, targets = network("batch"), F.one_hot(labels, 2).float()
    (trained,) = train(net, images, targets, recipe(steps=10), [torch.Generator().manual_seed(0)])
    before = {key: value.clone() for key, value in trained.state.items()}
    whole = predict(net, trained, images)
    torch.testing.assert_close(predict(net, trained, images, chunk=7), whole)
    torch.testing.assert_close(predict(net, trained, images[3:4]), whole[3:4])
    torch.testing.assert_close(whole.sum(1), torch.ones(len(images)))
    assert all(torch.equal(trained.state[key], value) for key, value in before.items())
    assert before["net.norms.0.num_batches_tracked"] == 10


class Watching(Network):
    """Remembers the first pixel of all that it was shown."""

    def logits(self, theta, images, state=None, train=True):
        self.seen = [*getattr(self, "seen", []), images[:, 0, 0, 0].tolist()]
        return super().logits(theta, images, state, train)


def test_every_image_is_seen_equally_often():
    images = torch.arange(10.0).view(-1, 1, 1, 1).expand(10, 3, 16, 16)
    targets = F.one_hot(torch.arange(10) % 2).float()
    watching = Watching(ConvNet(3, 16, 2, width=8, depth=2, norm="group"), "convnet")
    train(watching, images, targets, recipe(steps=6, batch_size=5, ops=()), [torch.Generator()])
    passes = [sorted(watching.seen[k] + watching.seen[k + 1]) for k in (0, 2, 4)]
    assert passes == [list(range(10))] * 3
