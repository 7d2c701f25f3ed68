"""Training one evaluation network, from fresh parameters, on a synthetic set or on real images alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptm_ray.core import augment
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Tensor


@dataclass(frozen=True)
class TrainRecipe:
    """SGD with momentum for a fixed number of update steps, the step size ×0.1 for the last `decay_share` of them.

    Steps rather than epochs, so that 1 image per class, 50 of them and a random subset all get equal work.
    """

    steps: int
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    ops: Sequence[str]
    decay_share: float = 0.3


@dataclass(frozen=True)
class Trained:
    """A trained network's parameters and, where it has any, its running statistics."""

    theta: Tensor
    state: dict[str, Tensor]


def train(
    network: Network,
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    recipe: TrainRecipe,
    generator: torch.Generator,
    begin: Trained | None = None,
) -> Trained:
    """Fresh parameters, or those of `begin`, trained on normalised images and label probabilities."""
    theta = network.init(generator).to(images.device) if begin is None else begin.theta
    state = network.fresh_state(images.device) if begin is None else begin.state
    velocity = torch.zeros_like(theta)
    size = min(recipe.batch_size, len(images))
    order, used = torch.randperm(len(images), generator=generator), 0
    for step in range(recipe.steps):
        if used + size > len(images):
            order, used = torch.randperm(len(images), generator=generator), 0
        rows, used = order[used : used + size], used + size
        lr = recipe.lr * (0.1 if step >= (1 - recipe.decay_share) * recipe.steps else 1.0)
        seen = augment.apply(augment.draw(recipe.ops, size, generator), images[rows])
        gradient = loss_gradient(network, theta, seen, labels[rows], keep=False, state=state).gradient
        velocity = recipe.momentum * velocity + gradient + recipe.weight_decay * theta
        theta = theta - lr * velocity
    return Trained(theta, state)


def predict(
    network: Network,
    trained: Trained,
    images: Float[Tensor, "n channels height width"],
    chunk: int = 512,
) -> Float[Tensor, "n classes"]:
    """Class probabilities, without gradients."""
    with torch.no_grad():
        parts = [
            network.logits(trained.theta, part, trained.state, train=False).softmax(1)
            for part in torch.split(images, chunk)
        ]
    return torch.cat(parts)
