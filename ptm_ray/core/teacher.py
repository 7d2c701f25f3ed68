"""What trained experts say of real images: where DATM's sets and labels begin.

Source: Guo et al. 2024 (Towards lossless dataset distillation via difficulty-aligned trajectory matching). Its own
start never ends where a class has too few images that an expert knows, and its labels are NaN where no expert is right;
here such images and one-hot labels fill in.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ptm_ray.core.coresets import CHUNK
from ptm_ray.core.params import Network
from ptm_ray.core.synthetic import pooled_rows
from ptm_ray.core.types import Float, Int, Tensor

#: Logit of the class in labels that begin as one-hot: soft enough that the gradient of the softmax is not lost in
#: rounding, sharp enough to stay the label.
SHARPNESS = 5.0


def logits_of(
    network: Network, theta: Float[Tensor, " params"], images: Float[Tensor, "n channels height width"]
) -> Float[Tensor, "n classes"]:
    """The network's logits, a few images at a time."""
    with torch.no_grad():
        return torch.cat([network.logits(theta, chunk) for chunk in torch.split(images, CHUNK)])


def correct_rows(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    ipc: int,
    names: Sequence[str],
    generator: torch.Generator,
) -> Int[Tensor, " chosen"]:
    """`ipc` random rows of each class that this expert classifies correctly, and others where it knows fewer, class by
    class; see `pooled_rows`.
    """

    def choose(label: int, rows: Tensor) -> Tensor:
        right = logits_of(network, theta, images[rows]).argmax(1) == label
        return torch.cat([rows[right], rows[~right]])[:ipc]

    return pooled_rows(labels, ipc, names, generator, choose)


def one_hot_logits(classes: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n classes"]:
    """Labels to be learned that begin as the class alone."""
    return SHARPNESS * F.one_hot(classes, num_classes).float()


def taught_logits(
    network: Network,
    thetas: Sequence[Float[Tensor, " params"]],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    num_classes: int,
) -> Float[Tensor, "n classes"]:
    """Mean logits of the experts that classify an image correctly; one-hot ones where none does."""
    total, count = images.new_zeros(len(images), num_classes), images.new_zeros(len(images), 1)
    for theta in thetas:
        logits = logits_of(network, theta, images)
        right = (logits.argmax(1) == classes).unsqueeze(1)
        total, count = total + logits * right, count + right
    return torch.where(count > 0, total / count.clamp_min(1), one_hot_logits(classes, num_classes))
