"""DSA: differentiable siamese augmentation, in its "one op per batch" mode.

A draw and its application are two functions, because the backward sweep through the student's steps must apply the
very same draw again. Each op is drawn for the whole batch, its strength for every image.

Source: Zhao & Bilen 2021 (strengths from their paper). Images are normalised, so 0 is the mean colour and fills
what an op leaves empty.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ptm_ray.core.types import Float, Tensor
from ptm_ray.errors import ConfigError, did_you_mean

Images = Float[Tensor, "batch channels height width"]


class Draw(NamedTuple):
    """One op and its strengths, drawn in [0, 1), shape (batch, 2); op "" leaves the images alone."""

    op: str
    strength: Tensor


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _affine(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    zero = torch.zeros_like(a)
    rows = torch.stack([torch.stack([a, b, zero], 1), torch.stack([c, d, zero], 1)], 1)
    return _warp(images, rows.to(images.dtype))


def _flip(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where((strength[:, 0] < 0.5).view(-1, 1, 1, 1), images.flip(3), images)


def _flip_vertical(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where((strength[:, 0] < 0.5).view(-1, 1, 1, 1), images.flip(2), images)


def _scale(images: Tensor, strength: Tensor) -> Tensor:
    ratio = 1.2
    factor = strength * (ratio - 1 / ratio) + 1 / ratio
    zero = torch.zeros_like(factor[:, 0])
    return _affine(images, factor[:, 0], zero, zero, factor[:, 1])


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    angle = (strength[:, 0] - 0.5) * 2 * math.radians(15)
    return _affine(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _shifted(side: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel of a shifted axis comes from, and whether that place exists; both (batch, side)."""
    source = torch.arange(side, device=offset.device) + offset[:, None]
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _crop(images: Tensor, strength: Tensor) -> Tensor:
    height, width = images.shape[2:]
    reach = torch.tensor([height, width], device=images.device) * 0.125
    offset = ((strength - 0.5) * 2 * reach).round().long()
    rows, row_there = _shifted(height, offset[:, 0])
    columns, column_there = _shifted(width, offset[:, 1])
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * (row_there[:, None, :, None] & column_there[:, None, None, :])


def _cutout(images: Tensor, strength: Tensor) -> Tensor:
    height, width = images.shape[2:]

    def inside(side: int, centre: Tensor) -> Tensor:
        distance = torch.arange(side, device=images.device) + 0.5 - centre[:, None] * side
        return distance.abs() < side * 0.25

    hole = inside(height, strength[:, 0])[:, :, None] & inside(width, strength[:, 1])[:, None, :]
    return images * ~hole[:, None]


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return images + (strength[:, 0] - 0.5).to(images.dtype).view(-1, 1, 1, 1)


def _saturation(images: Tensor, strength: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return (images - grey) * (strength[:, 0] * 2).to(images.dtype).view(-1, 1, 1, 1) + grey


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (strength[:, 0] + 0.5).to(images.dtype).view(-1, 1, 1, 1) + mean


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flip": _flip,
    "flip_vertical": _flip_vertical,
    "scale": _scale,
    "rotate": _rotate,
    "crop": _crop,
    "cutout": _cutout,
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
}


def check_ops(ops: Sequence[str]) -> None:
    """Raises `ConfigError` for a name that is no op."""
    for op in ops:
        if op not in OPS:
            raise ConfigError(f"unknown augmentation {op!r}; {did_you_mean(op, OPS)}")


def draw(ops: Sequence[str], batch: int, generator: torch.Generator) -> Draw:
    """One op for the batch and its strength for each of the images."""
    if not ops:
        return Draw("", torch.empty(batch, 2))
    op = ops[int(torch.randint(len(ops), (), generator=generator))]
    return Draw(op, torch.rand(batch, 2, generator=generator))


def apply(draw: Draw, images: Images) -> Images:
    """The drawn op on these images; differentiable in the images, and linear or affine in them."""
    if not draw.op:
        return images
    return OPS[draw.op](images, draw.strength.to(images.device))


def siamese(ops: Sequence[str], labels: Iterable[int], generator: torch.Generator) -> dict[int, Draw]:
    """For each class one op and one strength, (1, 2), that all of its images share, real and synthetic."""
    return {label: draw(ops, 1, generator) for label in sorted(labels)}


def apply_to_all(draw: Draw, images: Images) -> Images:
    """A siamese draw on every one of these images."""
    return apply(Draw(draw.op, draw.strength.expand(len(images), -1)), images)
