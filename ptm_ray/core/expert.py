"""Training experts: plain SGD on real images, their parameters handed out at every snapshot."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch.nn import functional as F

from ptm_ray.core import augment
from ptm_ray.core.batch import Batch
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.params import Network
from ptm_ray.core.sgd import InTraining, Step, sgd_on
from ptm_ray.core.types import Float, Int, Tensor


def batches(
    labels: Int[Tensor, " n"], batch_size: int, balanced: bool, generator: torch.Generator
) -> Iterator[Int[Tensor, " batch"]]:
    """Rows of one training batch after another, without end.

    Natural sampling walks through shuffled passes; a batch that would straddle two passes is left out, so that all
    have one size. Balanced sampling draws each class equally often, with replacement.
    """
    n = len(labels)
    size = min(batch_size, n)
    if balanced:
        counts = torch.bincount(labels).clamp_min(1)
        weights = (1.0 / counts)[labels]
        while True:
            yield torch.multinomial(weights, size, replacement=True, generator=generator)
    while True:
        order = torch.randperm(n, generator=generator)
        for first in range(0, n - size + 1, size):
            yield order[first : first + size]


def flat_gradient(
    gradient_at: Callable[[Tensor], Tensor], theta: Float[Tensor, " params"], radius: float, gap: float
) -> Float[Tensor, " params"]:
    """The direction of GSAM with its adaptive neighbourhood, which leads to flat minima: two gradients a step.

    The gradient at the worst point nearby (up to `radius`, measured in units of each parameter), less `gap` times the
    part of the gradient here that is orthogonal to it. Source: Zhuang et al. 2022 (Surrogate gap minimization improves
    sharpness-aware training), with the neighbourhood of Kwon et al. 2021 (ASAM), as FTD trains its experts.
    """
    here, scale = gradient_at(theta), theta.abs()
    uphill = scale * here
    tiny = torch.finfo(theta.dtype).tiny
    there = gradient_at(theta + radius * scale * uphill / uphill.norm().clamp_min(tiny))
    along = there / there.norm().clamp_min(tiny)
    across: Tensor = here - (here @ along) * along
    return there - gap * across


def log_shares(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, " classes"]:
    """Logarithm of each class's share among the labels; a class that they lack counts as one image."""
    return (torch.bincount(labels, minlength=num_classes).clamp_min(1) / len(labels)).log()


def _gradient_at(
    network: Network, radius: float, gap: float, shift: Tensor | None, theta: Tensor, images: Tensor, labels: Tensor
) -> Tensor:
    def at(point: Tensor) -> Tensor:
        if shift is not None:
            # The head's bias comes last, and what is added to the logits may as well be added to it.
            point = torch.cat([point[: -len(shift)], point[-len(shift) :] + shift])
        return loss_gradient(network, point, images, labels, keep=False).gradient

    return flat_gradient(at, theta, radius, gap) if radius else at(theta)


class ExpertTraining:
    """How experts are trained on real images: made once for many of them.

    With a `flat_radius`, by `flat_gradient`. `shift` is added to the logits of training: multiples of `log_shares` are
    logit adjustment (Menon et al. 2021, Long-tail learning via logit adjustment).
    """

    def __init__(
        self,
        network: Network,
        images: Float[Tensor, "n channels height width"],
        labels: Int[Tensor, " n"],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        batch_size: int,
        balanced: bool,
        ops: Sequence[str],
        flat_radius: float = 0.0,
        flat_gap: float = 0.0,
        shift: Float[Tensor, " classes"] | None = None,
    ) -> None:
        self._images, self._probabilities = images, F.one_hot(labels, network.num_classes).to(images.dtype)
        # Where the generators are.
        self._labels, self._ops = labels.cpu(), ops
        self._lr, self._batch_size, self._balanced = lr, batch_size, balanced
        at = partial(_gradient_at, network, flat_radius, flat_gap, shift)
        # Without the running statistics that experts don't have.
        self._sgd = sgd_on(images.device, lambda *given: at(*given[:3]), momentum, weight_decay)

    def snapshots(
        self,
        thetas: Sequence[Float[Tensor, " params"]],
        snapshot_steps: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Iterator[list[Float[Tensor, " params"]]]:
        """Trains an expert from each θ, and yields all of theirs at every snapshot, the first being what was given.

        Every snapshot is a copy: on a CPU `.detach().cpu()` would hand out the live weights, and all snapshots would
        end up equal (the fault of a public peer).
        """
        experts = [InTraining.fresh(theta) for theta in thetas]
        coming = [self._steps(generator) for generator in generators]
        step = 0
        for stop in snapshot_steps:
            self._sgd.run(
                experts, self._images, self._probabilities, [list(islice(own, stop - step)) for own in coming]
            )
            step = stop
            yield [expert.theta.clone() for expert in experts]

    def _steps(self, generator: torch.Generator) -> Iterator[Step]:
        for rows in batches(self._labels, self._batch_size, self._balanced, generator):
            yield Step(Batch(rows, augment.draw(self._ops, len(rows), generator)), self._lr)
