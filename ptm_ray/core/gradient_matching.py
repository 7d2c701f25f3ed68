"""DC and DSA: synthetic images that pull a network the way real ones do.

For each class, the gradient of the network's loss on its synthetic images is compared with that on a batch of real
ones. DSA shows both to the network under the same augmentation; without an op it is DC. Hard labels only: what is
compared are gradients of one class, so that soft labels of the images have no place.

Source: Zhao et al. 2021 (Dataset condensation with gradient matching); Zhao & Bilen 2021 (Dataset condensation with
differentiable siamese augmentation).
"""

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from ptm_ray.core.augment import Draw, apply_to_all
from ptm_ray.core.by_class import ImageGradients, sum_over_classes
from ptm_ray.core.gradient import gradient_in_images, loss_gradient
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Int, Tensor

#: Products of two norms below this count as this: a unit that hardly has a gradient has no direction to match. The
#: published code adds it to every product, which leaves equal gradients a distance.
FLOOR = 1e-6


def _cosines(a: Float[Tensor, "units weights"], b: Float[Tensor, "units weights"]) -> Float[Tensor, " units"]:
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosines: Tensor = (a * b).sum(1) / norms.clamp_min(FLOOR)
    return cosines


def gradient_distance(
    network: Network, synthetic: Float[Tensor, " params"], real: Float[Tensor, " params"]
) -> Float[Tensor, ""]:
    """1 − cosine between two gradients, summed over the output units of all layers; differentiable.

    A unit is a row of a linear layer, or all that a convolution's output map has of weights. Biases, and scales and
    shifts of norms, are left out: published code gives every vector the distance 0.
    """
    pairs = zip(network.unflatten(synthetic).values(), network.unflatten(real).values(), strict=True)
    layers = [1 - _cosines(a.flatten(1), b.flatten(1)) for a, b in pairs if a.ndim > 1]
    return torch.cat(layers).sum()


def match_gradients(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    real: Mapping[int, Tensor],
    draws: Mapping[int, Draw],
) -> ImageGradients:
    """`gradient_distance` at θ between synthetic and real images, summed over the classes of `real`.

    `real` maps a class to some of its normalised images, `draws` to what both sides are seen through (see
    `augment.siamese`). Images of a class that is not in `real` have gradient 0. Raises `ValueError` for networks with
    batch norm, whose statistics of one class would say what all of its images have in common.
    """

    def of_class(label: int, seen: Tensor) -> Tensor:
        return F.one_hot(torch.full((len(seen),), label, device=seen.device), network.num_classes).to(seen.dtype)

    def distance(label: int, synthetic: Tensor) -> Tensor:
        seen, seen_real = (apply_to_all(draws[label], side) for side in (synthetic, real[label]))
        target = loss_gradient(network, theta, seen_real, of_class(label, seen_real), keep=False).gradient
        return gradient_distance(network, gradient_in_images(network, theta, seen, of_class(label, seen)), target)

    return sum_over_classes(images, classes, real, distance)
