"""What follows a convolution, twice differentiable: average pooling, and instance norm → ReLU → average pooling as one.

The second comes from `nets.passes`, or from their compiled twin.
"""

from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch

from ptm_ray.core.nets import passes
from ptm_ray.core.nets.passes import Moved, Scale, Statistics, pooled, unpooled
from ptm_ray.core.types import Float, Tensor


@runtime_checkable
class Passes(Protocol):
    """Norm → ReLU → pooling and its derivatives, as `nets.passes` documents them.

    `ANY_MAPS`: whether maps may lie channels last, and be of bfloat16 beside scales of float32.
    """

    ANY_MAPS: bool

    def forward(self, x: Tensor, scale: Scale, eps: float) -> tuple[Tensor, Statistics]: ...

    def gradient(self, grad: Tensor, x: Tensor, scale: Scale, stats: Statistics) -> tuple[Tensor, Tensor, Tensor]: ...

    def move(self, dot: Tensor, x: Tensor, dot_scale: Scale, stats: Statistics) -> Moved: ...

    def gradient_moved(
        self, grads: tuple[Tensor, Tensor], x: Tensor, scales: tuple[Scale, Scale], stats: Statistics, moved: Moved
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@cache
def _compiled(device: str) -> Passes | None:
    """Those of a kind of device, or None where their compiler is not installed: the same results, more slowly."""
    try:
        if device == "cpu":
            from ptm_ray.core.nets import compiled_passes

            return compiled_passes
        if device == "cuda":
            from ptm_ray.core.nets import triton_passes

            return triton_passes
    except ImportError:
        pass
    return None


def passes_for(x: Tensor) -> Passes:
    """The fastest there are for maps like these."""
    return _compiled(x.device.type) or passes


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape[-2:]
        return pooled(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        out: Tensor = _Unpooled.apply(grads[0], *ctx.size)  # type: ignore[no-untyped-call]
        return out


class _Unpooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, height: int, width: int) -> Tensor:
        return unpooled(x, height, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Pooled.apply(grads[0]), None, None  # type: ignore[no-untyped-call]


def avg_pool(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
    """Means of 2×2 blocks, as `torch.nn.functional.avg_pool2d(x, 2)` gives them."""
    out: Tensor = _Pooled.apply(x)  # type: ignore[no-untyped-call]
    return out


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        p, stats = passes_for(x).forward(x, Scale(weight, bias), eps)
        ctx.save_for_backward(x, weight, bias, *stats)
        return p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *_NormReluPoolBackward.apply(grads[0], *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class _NormReluPoolBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, *rest)
        return passes_for(x).gradient(grad, x, Scale(*rest[:2]), Statistics(*rest[2:]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """⟨u, ∂x⟩ + ⟨a, ∂γ⟩ + ⟨b, ∂β⟩ is how ⟨grad, p⟩ moves along (u, a, b), whose derivatives are therefore these."""
        if torch.is_grad_enabled():
            raise RuntimeError("norm_relu_pool can be differentiated twice, not three times")
        grad, x, *rest = ctx.saved_tensors
        scale, stats = Scale(*rest[:2]), Statistics(*rest[2:])
        along = Scale(*grads[1:])
        used = passes_for(x)
        moved = used.move(grads[0].contiguous(), x, along, stats)
        of_x, of_weight, _ = used.gradient_moved((grad, torch.zeros_like(grad)), x, (scale, along), stats, moved)
        return moved.pooled, of_x, of_weight, *[None] * 5


def norm_relu_pool(
    x: Float[Tensor, "batch maps height width"],
    weight: Float[Tensor, " maps"],
    bias: Float[Tensor, " maps"],
    eps: float = 1e-5,
) -> Float[Tensor, "batch maps rows columns"]:
    """Instance norm with scale and shift, ReLU, then means of 2×2 blocks. Twice differentiable, in reverse."""
    # The framework's own group norm brings x and its gradient to one order in memory; called directly as here, its
    # derivative is silently wrong for a channels-last x, which is what a cropped image leads to.
    out: Tensor = _NormReluPool.apply(x.contiguous(), weight, bias, eps)  # type: ignore[no-untyped-call]
    return out
