"""Training one expert: plain SGD on real images, its parameters handed out at every snapshot."""

from collections.abc import Iterator, Sequence

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
) -> Iterator[Float[Tensor, " params"]]:
    """Yields θ at every snapshot, the first being the initialisation itself.

    Every snapshot is a copy: on a CPU `.detach().cpu()` would hand out the live weights, and all snapshots would
    end up equal (the fault of a public peer).
    """
    theta = theta.detach().clone()
    velocity = torch.zeros_like(theta)
    rows = batches(labels, batch_size, balanced, generator)
    step = 0
    for stop in snapshot_steps:
        while step < stop:
            batch = next(rows)
            draw = augment.draw(ops, len(batch), generator)
            leaf = theta.requires_grad_()
            loss = F.cross_entropy(network.logits(leaf, augment.apply(draw, images[batch])), labels[batch])
            (gradient,) = torch.autograd.grad(loss, leaf)
            theta = theta.detach()
            velocity = momentum * velocity + gradient + weight_decay * theta
            theta = theta - lr * velocity
            step += 1
        yield theta.detach().clone()
