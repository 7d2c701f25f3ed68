"""What a training step sees: some rows of a set of images, through one drawn augmentation."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from ptm_ray.core import augment
from ptm_ray.core.types import Float, Tensor


class Batch(NamedTuple):
    """What one step trains on: rows of a set, and the augmentation drawn for them."""

    rows: Tensor
    draw: augment.Draw


def seen(
    batch: Batch, images: Float[Tensor, "n channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """The batch's images, augmented."""
    return augment.apply(batch.draw, images[batch.rows])


def seen_at_once(
    batches: Sequence[Batch], images: Float[Tensor, "n channels height width"]
) -> Float[Tensor, "seen channels height width"]:
    """The same of all batches, one after the other; those of one op are augmented together.

    Where starting an operation takes longer than the operation itself: on a GPU, and for small images on a CPU.
    """
    by_op = sorted(range(len(batches)), key=lambda k: batches[k].draw.op)
    parts = []
    for op, numbers in groupby(by_op, key=lambda k: batches[k].draw.op):
        same = [batches[k] for k in numbers]
        strength = torch.cat([batch.draw.strength for batch in same])
        whole = Batch(torch.cat([batch.rows for batch in same]), augment.Draw(op, strength))
        parts.append(seen(whole, images))
    sizes = [len(batch.rows) for batch in batches]
    places = torch.split(torch.arange(sum(sizes)), sizes)
    order = torch.cat([places[k] for k in by_op]).argsort()
    return torch.cat(parts)[order.to(images.device)]
