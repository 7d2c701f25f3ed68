"""NCFM: synthetic images whose features have the characteristic function of real ones.

Φ(t) = E exp(i⟨t, x⟩) says all of a distribution where DM compares means. At some frequencies t it is compared in
amplitude (how far features scatter) and phase (where they are). A small network proposes the frequencies and learns to
propose those at which the two differ most, while the images learn to differ least. Hard labels only, class by class.

Source: Wang et al. 2025 (Dataset distillation with neural characteristic function: a minmax perspective). Frequencies
are drawn once for all classes, not for each, and both players move once after all classes: one pass through the sampler
for ten. Images are stored as they are: the published sets hold four of half the side in each, which is another idea.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ptm_ray.core.augment import Draw, apply_to_all
from ptm_ray.core.by_class import ImageGradients, sum_over_classes
from ptm_ray.core.optimiser import Optimiser
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Int, Tensor

#: Frequencies of an outer step. Published are 4096 from the sampler, but they are 256, each of them sixteen times, and
#: repeating them changes no mean. Without a sampler 4096 normal ones are.
FREQUENCIES = 256

#: The discrepancy is multiplied by this, as in the published code; published rates for images belong to it.
WEIGHT = 300.0

LAYERS = 3


def _root(x: Tensor) -> Tensor:
    """Square root, whose derivative at 0 is taken as 0 and not as infinite: there is no way down from equality."""
    positive = x > 0
    return torch.where(positive, x, 1).sqrt() * positive


def characteristic_function(
    features: Float[Tensor, "batch features"], frequencies: Float[Tensor, "frequencies features"]
) -> Float[Tensor, "2 frequencies"]:
    """Φ of a sample at these frequencies, its real part above its imaginary part."""
    angles = features @ frequencies.T
    return torch.stack([angles.cos().mean(0), angles.sin().mean(0)])


def discrepancy(
    phi: Float[Tensor, "2 frequencies"], target: Float[Tensor, "2 frequencies"], alpha: float = 0.5
) -> Float[Tensor, ""]:
    """Mean over frequencies of √(α·amplitude + (1 − α)·phase), with amplitude (|Φ| − |Φ'|)² and phase
    2 |Φ| |Φ'| (1 − cos of the angle between them); together they are |Φ − Φ'|².

    The published code weighs both with ½ and does not let the phase part fall below 10⁻¹².
    """
    # By differences rather than as 2 (|Φ| |Φ'| − Re Φ Φ'*), which cancels where the two are near.
    apart = (phi - target).square().sum(0)
    amplitude = (_root(phi.square().sum(0)) - _root(target.square().sum(0))).square()
    return _root(alpha * amplitude + (1 - alpha) * (apart - amplitude)).mean()


def match_characteristics(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    real: Mapping[int, Tensor],
    draws: Mapping[int, Draw],
    frequencies: Float[Tensor, "frequencies features"],
    *,
    alpha: float = 0.5,
    weight: float = WEIGHT,
    normalise: bool = True,
) -> ImageGradients:
    """`weight` times the discrepancy of embeddings, synthetic against real, summed over the classes of `real`; its
    gradients in the images and in `frequencies`.

    `real` maps a class to some of its normalised images, `draws` to what both sides are seen through (see
    `augment.siamese`). `frequencies` come from a `Sampler`, or are any others. With `normalise` embeddings are scaled
    to length 1. Images of a class that is not in `real` have gradient 0. Raises `ValueError` for networks with batch
    norm.
    """
    leaf = frequencies.detach().requires_grad_()

    def phi(label: int, side: Tensor) -> Tensor:
        features = network.embed(theta.detach(), apply_to_all(draws[label], side))
        return characteristic_function(F.normalize(features, dim=1) if normalise else features, leaf)

    def distance(label: int, synthetic: Tensor) -> Tensor:
        return weight * discrepancy(phi(label, synthetic), phi(label, real[label]), alpha)

    return sum_over_classes(images, classes, real, distance, leaf)


def calibrate(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    classes: Int[Tensor, " n"],
    draws: Mapping[int, Draw],
) -> ImageGradients:
    """Mean cross-entropy of each class's images under a trained network, summed over classes: NCFM's published code
    adds its gradient, so that images stay recognisable.
    """

    def loss_of(label: int, synthetic: Tensor) -> Tensor:
        logits = network.logits(theta, apply_to_all(draws[label], synthetic))
        return F.cross_entropy(logits, torch.full((len(synthetic),), label, device=images.device))

    return sum_over_classes(images, classes, [int(label) for label in torch.unique(classes)], loss_of)


class Sampler:
    """Turns normal noise into frequencies, and learns those at which two characteristic functions differ most.

    Three times linear, batch norm, then leaky ReLU (0.2) or, the last, tanh: no frequency leaves [−1, 1]. The noise of
    a step is one batch, so that batch norm keeps no statistics; linear layers have no bias, which it would subtract.
    In the published code the sampler's two gradients, of the images' step and of its own, add up to 0, and it stays as
    it began; here it climbs, as the paper says.

    `features` is the embedding's length. SGD with momentum, as published.
    """

    def __init__(
        self,
        features: int,
        generator: torch.Generator,
        *,
        lr: float = 1e-3,
        momentum: float = 0.5,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        bound = features**-0.5
        weights = torch.empty(LAYERS, features, features, dtype=dtype).uniform_(-bound, bound, generator=generator)
        tensors = {
            "weights": weights,
            "scales": torch.ones(LAYERS, features, dtype=dtype),
            "shifts": torch.zeros(LAYERS, features, dtype=dtype),
        }
        self._params = {name: value.to(device).requires_grad_() for name, value in tensors.items()}
        self._optimiser = Optimiser("sgd", [(value, -lr) for value in self._params.values()], momentum)

    def frequencies(self, noise: Float[Tensor, "frequencies features"]) -> Float[Tensor, "frequencies features"]:
        """Proposals, one for each row of noise; their graph is what `ascend` needs."""
        t = noise
        with torch.enable_grad():
            for number, (weight, scale, shift) in enumerate(zip(*self._params.values(), strict=True), start=1):
                t = F.batch_norm(t @ weight.T, None, None, scale, shift, training=True)
                t = torch.tanh(t) if number == LAYERS else F.leaky_relu(t, 0.2)
        return t

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "frequencies features"]:
        """`count` proposals from fresh noise; at least two, as batch norm needs."""
        weights = self._params["weights"]
        noise = torch.randn(count, weights.shape[2], generator=generator, dtype=weights.dtype)
        return self.frequencies(noise.to(weights.device))

    def ascend(
        self,
        frequencies: Float[Tensor, "frequencies features"],
        gradient: Float[Tensor, "frequencies features"],
    ) -> None:
        """One step up the discrepancy, by its gradient in frequencies that this sampler has proposed."""
        self._optimiser.step(torch.autograd.grad(frequencies, list(self._params.values()), gradient))

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that changes."""
        copied = {name: value.detach().clone() for name, value in self._params.items()}
        return {**copied, "moments": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a copied state, in place."""
        with torch.no_grad():
            for name, value in self._params.items():
                value.copy_(state[name])
        self._optimiser.load_state_dict(state["moments"])
