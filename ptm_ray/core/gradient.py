"""The gradient of a network's loss on labelled images, and what its product with a direction depends on.

A student's step needs the first; the way back through that step needs the derivatives of ⟨gradient, direction⟩ in the
student's parameters, the images and their labels. Networks that can do both by hand are asked to, all others go through
autograd twice.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Tensor


class Along(NamedTuple):
    """Derivatives of ⟨gradient, direction⟩; `theta` is None where it was not asked for."""

    theta: Float[Tensor, " params"] | None
    images: Float[Tensor, "batch channels height width"]
    labels: Float[Tensor, "batch classes"]


@runtime_checkable
class LossGradient(Protocol):
    """A gradient that may still know how it came about."""

    @property
    def gradient(self) -> Float[Tensor, " params"]:
        """Of the mean cross-entropy against label probabilities."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Memory that `along` needs, beyond what autograd keeps."""
        ...

    def along(self, direction: Float[Tensor, " params"], in_theta: bool = True) -> Along:
        """Derivatives of ⟨gradient, direction⟩. Once at the most, and only where the gradient was kept for it."""
        ...


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy against label probabilities."""
    return -(labels * F.log_softmax(logits, dim=1)).sum(1).mean()


class _ByAutograd:
    kept_bytes = 0

    def __init__(
        self,
        network: Network,
        theta: Tensor,
        images: Tensor,
        labels: Tensor,
        keep: bool,
        state: dict[str, Tensor] | None,
    ) -> None:
        self._theta = theta.detach().requires_grad_()
        self._images, self._labels = (t.detach().requires_grad_(keep) for t in (images, labels))
        with torch.enable_grad():
            loss = soft_cross_entropy(network.logits(self._theta, self._images, state), self._labels)
            (self.gradient,) = torch.autograd.grad(loss, self._theta, create_graph=keep)

    def along(self, direction: Tensor, in_theta: bool = True) -> Along:
        leaves = [self._images, self._labels, self._theta]
        with torch.enable_grad():
            found = torch.autograd.grad(self.gradient @ direction, leaves if in_theta else leaves[:2])
        return Along(found[2] if in_theta else None, found[0], found[1])


def loss_gradient(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "batch channels height width"],
    labels: Float[Tensor, "batch classes"],
    keep: bool,
    state: dict[str, Tensor] | None = None,
) -> LossGradient:
    """∇θ of `soft_cross_entropy` at θ; `keep` what its `along` needs, or nothing. `state` as in `Network.logits`."""
    if network.by_hand is not None:
        with torch.no_grad():
            found: LossGradient = network.by_hand(
                lambda vector: network.unflatten(vector).values(), theta, images, labels, keep=keep
            )
        return found
    return _ByAutograd(network, theta, images, labels, keep, state)


class _InImages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, network: Network, theta: Tensor, labels: Tensor) -> Tensor:
        ctx.found = loss_gradient(network, theta, images, labels, keep=True)
        out: Tensor = ctx.found.gradient.detach()
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        images: Tensor = ctx.found.along(grads[0], in_theta=False).images
        return images, None, None, None


def gradient_in_images(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "batch channels height width"],
    labels: Float[Tensor, "batch classes"],
) -> Float[Tensor, " params"]:
    """The same gradient as a function of the images, which autograd can differentiate once."""
    out: Tensor = _InImages.apply(images, network, theta, labels)  # type: ignore[no-untyped-call]
    return out
