"""SGD with momentum, of one network or several of an architecture: trains experts and evaluation networks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch

from ptm_ray.core.batch import Batch, seen, seen_at_once
from ptm_ray.core.recording import Recording, memory_pool, side_by_side
from ptm_ray.core.types import Float, Tensor

#: ∇θ, from θ, images, label probabilities and running statistics, which it updates in place.
GradientAt = Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]
#: Steps of each network in a recording: more take longer to record and save little.
RECORDED_STEPS = 10


class Step(NamedTuple):
    """What it trains on, and the step size."""

    batch: Batch
    lr: float


@dataclass
class InTraining:
    """A network's parameters, their velocity and, where it has any, its running statistics."""

    theta: Float[Tensor, " params"]
    velocity: Float[Tensor, " params"]
    state: dict[str, Tensor]

    @classmethod
    def fresh(cls, theta: Float[Tensor, " params"], state: dict[str, Tensor] | None = None) -> "InTraining":
        """At rest. The parameters are copied."""
        return cls(theta.detach().clone(), torch.zeros_like(theta), {} if state is None else state)

    def copy(self) -> "InTraining":
        """One that training changes apart."""
        return InTraining(self.theta.clone(), self.velocity.clone(), {key: v.clone() for key, v in self.state.items()})

    def tensors(self) -> list[Tensor]:
        """All that training changes."""
        return [self.theta, self.velocity, *self.state.values()]


class Sgd:
    """Trains networks one after the other."""

    def __init__(self, gradient_at: GradientAt, momentum: float, weight_decay: float) -> None:
        self._gradient_at, self._momentum, self._decay = gradient_at, momentum, weight_decay

    def run(
        self,
        networks: Sequence[InTraining],
        images: Float[Tensor, "n channels height width"],
        labels: Float[Tensor, "n classes"],
        steps: Sequence[Sequence[Step]],
    ) -> None:
        """Each network's own steps on the same images, in place; as many for each, of as many images."""
        for network, own in zip(networks, steps, strict=True):
            for batch, lr in own:
                self.step(network, seen(batch, images), labels[batch.rows], lr)

    def step(self, network: InTraining, images: Tensor, labels: Tensor, lr: float | Tensor) -> None:
        """One step, in place."""
        gradient = self._gradient_at(network.theta, images, labels, network.state)
        network.velocity.copy_(self._momentum * network.velocity + gradient + self._decay * network.theta)
        network.theta.sub_(lr * network.velocity)


class _Recorded:
    """So many steps of these networks: what they read, and how they are run."""

    def __init__(self, sgd: Sgd, networks: Sequence[InTraining], seen: Tensor, labels: Tensor, pool: object) -> None:
        """`seen`: (networks, steps, batch, …), of the shape that all will have."""
        device = seen.device
        self.seen, self.labels = seen.clone(), labels.clone()
        self.lrs = torch.zeros(seen.shape[:2], dtype=networks[0].theta.dtype, device=device)
        before = [[tensor.clone() for tensor in network.tensors()] for network in networks]

        def train(number: int) -> None:
            for given in zip(self.seen[number], self.labels[number], self.lrs[number], strict=True):
                sgd.step(networks[number], *given)

        ways = [partial(train, number) for number in range(len(networks))]
        self.run = Recording(partial(side_by_side, ways, device), device, pool)
        for network, tensors in zip(networks, before, strict=True):
            _copy(tensors, network.tensors())


def _copy(given: Iterable[Tensor], to: Iterable[Tensor]) -> None:
    for mine, theirs in zip(to, given, strict=True):
        mine.copy_(theirs)


class RecordedSgd(Sgd):
    """Trains networks side by side, by recordings. Made once for many trainings, since recordings are kept."""

    def __init__(self, gradient_at: GradientAt, momentum: float, weight_decay: float) -> None:
        super().__init__(gradient_at, momentum, weight_decay)
        self._held: dict[int, list[InTraining]] = {}
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._pool: object = None

    def run(
        self,
        networks: Sequence[InTraining],
        images: Float[Tensor, "n channels height width"],
        labels: Float[Tensor, "n classes"],
        steps: Sequence[Sequence[Step]],
    ) -> None:
        """As `Sgd.run`."""
        if len(networks) not in self._held:
            self._held[len(networks)] = [network.copy() for network in networks]
        held = self._held[len(networks)]
        for network, mine in zip(networks, held, strict=True):
            _copy(network.tensors(), mine.tensors())
        for first in range(0, len(steps[0]), RECORDED_STEPS):
            self._replay(held, images, labels, [own[first : first + RECORDED_STEPS] for own in steps])
        for network, mine in zip(networks, held, strict=True):
            _copy(mine.tensors(), network.tensors())

    def _replay(self, held: list[InTraining], images: Tensor, labels: Tensor, steps: Sequence[Sequence[Step]]) -> None:
        batches = [step.batch for step in chain(*steps)]
        rows = torch.cat([batch.rows for batch in batches]).to(images.device)
        each = len(steps), len(steps[0]), len(batches[0].rows)
        shown = seen_at_once(batches, images).view(*each, *images.shape[1:])
        wanted = labels[rows].view(*each, -1)
        if shown.shape not in self._recorded:
            self._pool = self._pool or memory_pool(images.device)
            self._recorded[shown.shape] = _Recorded(self, held, shown, wanted, self._pool)
        recorded = self._recorded[shown.shape]
        lrs = torch.tensor([[step.lr for step in own] for own in steps], dtype=torch.float64)
        _copy((shown, wanted, lrs), (recorded.seen, recorded.labels, recorded.lrs))
        recorded.run()


def sgd_on(device: torch.device, gradient_at: GradientAt, momentum: float, weight_decay: float) -> Sgd:
    """The faster one there."""
    kind = RecordedSgd if device.type == "cuda" else Sgd
    return kind(gradient_at, momentum, weight_decay)
