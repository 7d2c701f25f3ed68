"""What methods that compare each class's synthetic images with real ones share: their result, the sum over classes."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from ptm_ray.core.synthetic import class_rows
from ptm_ray.core.types import Float, Int, Tensor


class ImageGradients(NamedTuple):
    """A loss summed over classes, and its gradient in the synthetic images.

    `frequencies` is the gradient in NCFM's frequencies, which their sampler climbs; None for all other methods.
    """

    loss: Float[Tensor, ""]
    images: Float[Tensor, "n channels height width"]
    frequencies: Float[Tensor, "frequencies features"] | None = None


def sum_over_classes(
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    labels: Iterable[int],
    loss_of: Callable[[int, Tensor], Tensor],
    frequencies: Float[Tensor, "frequencies features"] | None = None,
) -> ImageGradients:
    """The sum of `loss_of(label, images of this class)` over `labels`; images of other classes have gradient 0.

    One class after another, so that memory is that of a single class's graph. With `frequencies`, a leaf that
    `loss_of` uses, also the gradient in them.
    """
    images = images.detach()
    total, gradient = images.new_zeros(()), torch.zeros_like(images)
    climbed = None if frequencies is None else torch.zeros_like(frequencies)
    for label in labels:
        rows = class_rows(classes, label)
        if len(rows) == 0:
            continue
        leaf = images[rows].requires_grad_()
        with torch.enable_grad():
            loss = loss_of(label, leaf)
        leaves = [leaf] if frequencies is None else [leaf, frequencies]
        of_images, *of_frequencies = torch.autograd.grad(loss, leaves)
        total, gradient[rows] = total + loss.detach(), of_images
        if climbed is not None:
            climbed += of_frequencies[0]
    return ImageGradients(total, gradient, climbed)
