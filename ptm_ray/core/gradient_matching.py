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


def _class_gradient(
    network: Network, theta: Tensor, images: Tensor, label: int, differentiable: bool
) -> Float[Tensor, " params"]:
    classes = torch.full((len(images),), label, device=images.device)
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(network.logits(leaf, images), classes)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=differentiable)
    return gradient


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

    def distance(label: int, synthetic: Tensor) -> Tensor:
        seen, seen_real = (apply_to_all(draws[label], side) for side in (synthetic, real[label]))
        target = _class_gradient(network, theta, seen_real, label, differentiable=False)
        return gradient_distance(network, _class_gradient(network, theta, seen, label, differentiable=True), target)

    return sum_over_classes(images, classes, real, distance)
