"""Dynamic overlap mitigation: measure how alike the images of a class have become, push halves apart, retrain.

Matching from a fixed start is stable but lets the images of a class drift towards each other. Each class is split
into two halves, drawn anew at each cycle; their MMD² is compared with that of two equally large random halves of
*real* images of the class, in the embedding of the expert at the segment's end. A ratio below 1 says that the
synthetic halves are more alike than real images are.

Source: PTM (arXiv 2403.13469) for the idea; ratio, cycle and undoing are own design.
"""

from enum import StrEnum
from typing import NamedTuple

import torch

from ptm_ray.core.kernels import median_bandwidth, mmd2
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Int, Tensor


class Phase(StrEnum):
    """Match: all images on the matching loss. Separate: one half also moves away. Retrain: that half matches."""

    MATCH = "match"
    SEPARATE = "separate"
    RETRAIN = "retrain"


class Halves(NamedTuple):
    """Rows of the synthetic set: those that move and those that stand still, equally many of each class."""

    moving: Int[Tensor, " half"]
    standing: Int[Tensor, " half"]


class Reference(NamedTuple):
    """What real images of one class look like in an embedding: their median bandwidth, MMD² of their halves."""

    bandwidth: Tensor
    mmd2: Tensor


def split(classes: Int[Tensor, " n"], generator: torch.Generator) -> Halves:
    """Two disjoint halves of each class, at random; of an odd number one image sits out.

    Raises `ValueError` where a class has one image: there is nothing to split.
    """
    moving, standing = [], []
    for label in torch.unique(classes):
        rows = torch.nonzero(classes == label).flatten()
        if len(rows) < 2:
            raise ValueError(f"class {int(label)} has {len(rows)} image: nothing to split")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        half = len(rows) // 2
        moving.append(rows[:half])
        standing.append(rows[half : 2 * half])
    return Halves(torch.cat(moving), torch.cat(standing))


def reference(embedded: Float[Tensor, "real features"], half: int, draws: int, generator: torch.Generator) -> Reference:
    """Bandwidth and mean MMD² of `draws` pairs of random halves of real images of one class, `half` in each.

    Where there are fewer, MMD² is that of smaller halves over as much as they are smaller: between halves of one kind
    it falls as one over their size.
    """
    bandwidth = median_bandwidth(embedded)
    wanted, half = half, max(1, min(half, len(embedded) // 2))
    numbers = []
    for _ in range(draws):
        order = torch.randperm(len(embedded), generator=generator)
        numbers.append(mmd2(embedded[order[:half]], embedded[order[half : 2 * half]], bandwidth))
    floor = torch.finfo(embedded.dtype).eps
    return Reference(bandwidth, (torch.stack(numbers).mean() * half / max(1, wanted)).clamp_min(floor))


def references(
    network: Network,
    theta: Float[Tensor, " params"],
    real: dict[int, Tensor],
    half: int,
    generator: torch.Generator,
    draws: int = 8,
) -> dict[int, Reference]:
    """`reference` of every class that has the two real images it takes; `real` maps a class to some of its images."""
    with torch.no_grad():
        return {
            label: reference(network.embed(theta, images), half, draws, generator)
            for label, images in real.items()
            if len(images) > 1
        }


def overlap_ratio(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    halves: Halves,
    real: dict[int, Reference],
) -> Float[Tensor, ""]:
    """Mean over the classes of MMD²(moving, standing) over the same number of real halves; differentiable.

    Below 1 the halves are more alike than real ones; it falls as overlap grows. A class without a reference is left
    out.
    """
    ratios = []
    for label in (k for k in torch.unique(classes[halves.moving]) if int(k) in real):
        moving = halves.moving[classes[halves.moving] == label]
        standing = halves.standing[classes[halves.standing] == label]
        known = real[int(label)]
        there = network.embed(theta, images[standing])
        ratios.append(mmd2(network.embed(theta, images[moving]), there, known.bandwidth) / known.mmd2)
    return torch.stack(ratios).mean()


def separation_gradient(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    halves: Halves,
    real: dict[int, Reference],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n channels height width"]]:
    """The overlap ratio and its gradient in the images, to be climbed by the moving half."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        ratio = overlap_ratio(network, theta, leaf, classes, halves, real)
        (gradient,) = torch.autograd.grad(ratio, leaf)
    return ratio.detach(), gradient


class Cycle(NamedTuple):
    """Where the cycle stands: its phase, outer steps left in it (for match: until the next look), cycles so far."""

    phase: Phase
    left: int
    number: int = 0


def next_phase(cycle: Cycle, separate_steps: int, retrain_steps: int, look_every: int, start: bool) -> Cycle:
    """The state after one outer step; `start` begins a cycle where a look at the overlap has asked for it.

    Without retrain steps a cycle is over once it has separated.
    """
    if start:
        return Cycle(Phase.SEPARATE, separate_steps, cycle.number + 1)
    if cycle.left > 1:
        return cycle._replace(left=cycle.left - 1)
    if cycle.phase is Phase.SEPARATE and retrain_steps:
        return Cycle(Phase.RETRAIN, retrain_steps, cycle.number)
    return Cycle(Phase.MATCH, look_every, cycle.number)
