"""Training one expert: plain SGD on real images, its parameters handed out at every snapshot."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.nn import functional as F

from ptm_ray.core import augment
from ptm_ray.core.params import Network
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


def _gradient(network: Network, images: Tensor, labels: Tensor, shift: Tensor | None, theta: Tensor) -> Tensor:
    leaf = theta.detach().requires_grad_()
    logits = network.logits(leaf, images)
    loss = F.cross_entropy(logits if shift is None else logits + shift, labels)
    gradient: Tensor = torch.autograd.grad(loss, leaf)[0]
    return gradient


def train_expert(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    *,
    snapshot_steps: Sequence[int],
    lr: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    balanced: bool,
    ops: Sequence[str],
    generator: torch.Generator,
    flat_radius: float = 0.0,
    flat_gap: float = 0.0,
    shift: Float[Tensor, " classes"] | None = None,
) -> Iterator[Float[Tensor, " params"]]:
    """Yields θ at every snapshot, the first being the initialisation itself. With a `flat_radius`, by `flat_gradient`.

    `shift` is added to the logits of training: multiples of `log_shares` are logit adjustment (Menon et al. 2021,
    Long-tail learning via logit adjustment).

    Every snapshot is a copy: on a CPU `.detach().cpu()` would hand out the live weights, and all snapshots would
    end up equal (the fault of a public peer).
    """
    theta = theta.detach().clone()
    velocity = torch.zeros_like(theta)
    # Where the generator is.
    rows = batches(labels.cpu(), batch_size, balanced, generator)
    step = 0
    for stop in snapshot_steps:
        while step < stop:
            batch = next(rows)
            seen = augment.apply(augment.draw(ops, len(batch), generator), images[batch])
            gradient_at = partial(_gradient, network, seen, labels[batch], shift)
            gradient = flat_gradient(gradient_at, theta, flat_radius, flat_gap) if flat_radius else gradient_at(theta)
            velocity = momentum * velocity + gradient + weight_decay * theta
            theta = theta - lr * velocity
            step += 1
        yield theta.clone()
