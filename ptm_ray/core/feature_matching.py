"""DM: synthetic images whose mean features under a random network are those of real ones.

Hard labels only: means are compared class by class.

Source: Zhao & Bilen 2023 (Dataset condensation with distribution matching).
"""

from collections.abc import Mapping

import torch

from ptm_ray.core.augment import Draw, apply_to_all
from ptm_ray.core.by_class import ImageGradients, sum_over_classes
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Int, Tensor


def match_features(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    real: Mapping[int, Tensor],
    draws: Mapping[int, Draw],
) -> ImageGradients:
    """Squared distance between mean embeddings, synthetic and real, summed over the classes of `real`.

    `real` maps a class to some of its normalised images, `draws` to what both sides are seen through (see
    `augment.siamese`). Images of a class that is not in `real` have gradient 0. Raises `ValueError` for networks with
    batch norm, which would set both means to those of its own statistics.
    """

    def distance(label: int, synthetic: Tensor) -> Tensor:
        with torch.no_grad():
            target = network.embed(theta, apply_to_all(draws[label], real[label])).mean(0)
        mean = network.embed(theta.detach(), apply_to_all(draws[label], synthetic)).mean(0)
        return (mean - target).square().sum()

    return sum_over_classes(images, classes, real, distance)
