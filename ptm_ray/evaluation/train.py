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


class _Steps:
    """The steps of a recipe for one network, drawn as they are taken."""

    def __init__(self, count: int, recipe: TrainRecipe, generator: torch.Generator) -> None:
        self._count, self._recipe, self._generator = count, recipe, generator
        self._size = min(recipe.batch_size, count)
        self._taken, self._used, self._order = 0, 0, torch.randperm(count, generator=generator)

    def take(self, most: int) -> list[Step]:
        """The next ones, up to so many."""
        ahead = range(self._taken, min(self._taken + most, self._recipe.steps))
        self._taken += len(ahead)
        return [self._step(number) for number in ahead]

    def _step(self, number: int) -> Step:
        recipe = self._recipe
        if self._used + self._size > self._count:
            self._order, self._used = torch.randperm(self._count, generator=self._generator), 0
        rows = self._order[self._used : self._used + self._size]
        self._used += self._size
        lr = recipe.lr * (0.1 if number >= (1 - recipe.decay_share) * recipe.steps else 1.0)
        return Step(Batch(rows, augment.draw(recipe.ops, self._size, self._generator)), lr)


@dataclass
class Training:
    """Networks on their way, each with the steps that it has yet to take.

    All that it takes to go on but for the images: pickled, it goes on in another process, to the same parameters.
    """

    networks: Sequence[InTraining]
    steps: Sequence[_Steps]

    @classmethod
    def begin(
        cls,
        network: Network,
        count: int,
        recipe: TrainRecipe,
        generators: Sequence[torch.Generator],
        device: torch.device,
        begun: Sequence[InTraining] | None = None,
    ) -> "Training":
        """On `count` images, a network for each generator, from fresh parameters; or `begun` ones, from rest."""
        if begun is None:
            begun = [
                InTraining.fresh(network.init(draw).to(device), network.fresh_state(device)) for draw in generators
            ]
        for one in begun:
            one.velocity.zero_()
        return cls(begun, [_Steps(count, recipe, draw) for draw in generators])

    def advance(
        self, sgd: Sgd, images: Float[Tensor, "n channels height width"], labels: Float[Tensor, "n classes"], most: int
    ) -> None:
        """The next steps of each, up to so many, in place."""
        sgd.run(self.networks, images, labels, [steps.take(most) for steps in self.steps])


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
    training = Training.begin(network, len(images), recipe, generators, images.device, begun)
    training.advance(sgd or trainer(network, recipe, images.device), images, labels, recipe.steps)
    return training.networks


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
