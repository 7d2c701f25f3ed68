"""Training evaluation networks, from fresh parameters, on a synthetic set or on real images alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptm_ray.core import augment
from ptm_ray.core.batch import Batch
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.params import Network
from ptm_ray.core.sgd import InTraining, Sgd, Step, sgd_on
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


def trainer(network: Network, recipe: TrainRecipe, device: torch.device) -> Sgd:
    """What trains networks of this architecture: worth keeping for many trainings."""

    def gradient_at(theta: Tensor, images: Tensor, labels: Tensor, state: dict[str, Tensor]) -> Tensor:
        return loss_gradient(network, theta, images, labels, keep=False, state=state).gradient

    return sgd_on(device, gradient_at, recipe.momentum, recipe.weight_decay)


def train(
    network: Network,
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    recipe: TrainRecipe,
    generators: Sequence[torch.Generator],
    begun: Sequence[InTraining] | None = None,
    sgd: Sgd | None = None,
) -> Sequence[InTraining]:
    """A network for each generator, trained on normalised images and label probabilities, each on its own batches.

    From fresh parameters; or `begun` ones, in place and from rest. `sgd` is a `trainer` that was kept.
    """
    if begun is None:
        begun = [
            InTraining.fresh(network.init(draw).to(images.device), network.fresh_state(images.device))
            for draw in generators
        ]
    for one in begun:
        one.velocity.zero_()
    steps = [_steps(len(images), recipe, draw) for draw in generators]
    (sgd or trainer(network, recipe, images.device)).run(begun, images, labels, steps)
    return begun


def _steps(count: int, recipe: TrainRecipe, generator: torch.Generator) -> list[Step]:
    size = min(recipe.batch_size, count)
    order, used = torch.randperm(count, generator=generator), 0
    steps = []
    for number in range(recipe.steps):
        if used + size > count:
            order, used = torch.randperm(count, generator=generator), 0
        rows, used = order[used : used + size], used + size
        lr = recipe.lr * (0.1 if number >= (1 - recipe.decay_share) * recipe.steps else 1.0)
        steps.append(Step(Batch(rows, augment.draw(recipe.ops, size, generator)), lr))
    return steps


def predict(
    network: Network,
    trained: InTraining,
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
