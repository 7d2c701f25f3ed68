"""What follows a convolution: average pooling, and instance norm → ReLU → average pooling as one, twice differentiable.

A matching step differentiates twice, and beside its convolutions it spends its time on passes over feature maps.
Pooling by the framework took a fifth of it on a CPU (3.4 ms forward, 4.4 ms back for 32 images of 32 maps of 32×32
pixels on one thread; as sums of neighbours 0.4 and 1.2), and the framework's second derivative of group norm is a long
chain of small operations. Here all derivatives are written out, so that each is a handful of passes.
"""

from typing import Any

import torch

from ptm_ray.core.types import Float, Tensor


def _sum_blocks(x: Tensor) -> Tensor:
    """(…, height, width) → (…, height // 2, width // 2); a last odd row or column is left out."""
    *lead, height, width = x.shape
    rows, columns = height // 2, width // 2
    pairs = x[..., : 2 * rows, : 2 * columns].reshape(*lead, rows, 2, 2 * columns)
    summed = (pairs[..., 0, :] + pairs[..., 1, :]).view(*lead, rows, columns, 2)
    return summed[..., 0] + summed[..., 1]


def _spread_blocks(x: Tensor, height: int, width: int) -> Tensor:
    """Its adjoint: every value four times, zeros in a last odd row or column."""
    *lead, rows, columns = x.shape
    line = x.repeat_interleave(2, dim=-1)
    spread = torch.cat((line, line), dim=-1).view(*lead, 2 * rows, 2 * columns)
    odd = (0, width - 2 * columns, 0, height - 2 * rows)
    return torch.nn.functional.pad(spread, odd) if any(odd) else spread


class _SumBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape[-2:]
        return _sum_blocks(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        out: Tensor = _SpreadBlocks.apply(grads[0], *ctx.size)  # type: ignore[no-untyped-call]
        return out


class _SpreadBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, height: int, width: int) -> Tensor:
        return _spread_blocks(x, height, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _SumBlocks.apply(grads[0]), None, None  # type: ignore[no-untyped-call]


def avg_pool(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
    """Means of 2×2 blocks, as `torch.nn.functional.avg_pool2d(x, 2)` gives them."""
    out: Tensor = _SumBlocks.apply(x)  # type: ignore[no-untyped-call]
    return 0.25 * out


class _NormReluPool(torch.autograd.Function):
    """p = pool(relu(γ x̂ + β)), x̂ = (x − μ) r of each map, r = 1 / √(σ² + ε)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        images, maps, height, width = x.shape
        # Instance norm is group norm with a group per map.
        y, mean, rstd = torch.native_group_norm(x, weight, bias, images, maps, height * width, maps, eps)
        active = y.relu_()
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, rstd, active)
        return _sum_blocks(active).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *_NormReluPoolBackward.apply(grads[0], *ctx.saved_tensors, ctx.eps), None  # type: ignore[no-untyped-call]


class _NormReluPoolBackward(torch.autograd.Function):
    """The gradients of x, γ and β as a function of the gradient of p, of x and of γ.

    With P(v) = v − mean v − x̂ · mean(v x̂), which is its own adjoint, and g the gradient of γ x̂ + β:
    ∂x = γ r P(g), ∂γ = Σ g x̂, ∂β = Σ g.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, active: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        images, maps, height, width = x.shape
        g = _where_active_(_spread_blocks(0.25 * grad, height, width), active)
        sizes = images, maps, height * width, maps
        found = torch.ops.aten.native_group_norm_backward(g, x, mean, rstd, weight, *sizes, [True, True, True])
        ctx.eps = eps
        ctx.save_for_backward(g, x, weight, rstd, active)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of S = ⟨u, ∂x⟩ + ⟨a, ∂γ⟩ + ⟨b, ∂β⟩: every map's part is a combination of u, g, x̂ and 1."""
        if torch.is_grad_enabled():
            raise RuntimeError("norm_relu_pool can be differentiated twice, not three times")
        g, x, weight, rstd, active = ctx.saved_tensors
        images, maps, height, width = x.shape
        n = height * width
        x_hat = torch.native_group_norm(x, None, None, images, maps, n, maps, ctx.eps)[0].view(images, maps, n)
        u, g = grads[0].reshape(images, maps, n), g.view(images, maps, n)
        a, b = grads[1].view(1, maps, 1), grads[2].view(1, maps, 1)
        r, gamma = rstd.view(images, maps, 1), weight.view(1, maps, 1)

        u_mean, g_mean = u.mean(2, keepdim=True), g.mean(2, keepdim=True)
        u_hat, g_hat = _mean_product(u, x_hat), _mean_product(g, x_hat)
        # mean(u P(g)): S is n γ r times this, beside what a and b bring.
        together = _mean_product(u, g) - u_mean * g_mean - u_hat * g_hat

        scale = gamma * r
        of_y = torch.addcmul(b - scale * u_mean, scale, u).addcmul_(a - scale * u_hat, x_hat)
        of_grad = _sum_blocks(_where_active_(of_y.view_as(x), active)).mul_(0.25)

        # S depends on x̂ through h, and on r, each of which depends on x.
        h_u, h_g = -scale * g_hat, a - scale * u_hat
        h_mean, h_hat = h_u * u_mean + h_g * g_mean, h_u * u_hat + h_g * g_hat
        of_x = torch.addcmul(-r * h_mean, r * h_u, u).addcmul_(r * h_g, g)
        of_x.addcmul_(-r * (h_hat + scale * together), x_hat)
        of_weight = (n * r * together).sum((0, 2))
        return of_grad, of_x.view_as(x), of_weight, None, None, None, None


def _mean_product(v: Tensor, w: Tensor) -> Tensor:
    """mean(v w) over the last dimension, kept."""
    return (v * w).mean(2, keepdim=True)


def _where_active_(v: Tensor, active: Tensor) -> Tensor:
    """v where the ReLU let something through, else 0; in place. Multiplying by a mask takes twice as long."""
    out: Tensor = torch.ops.aten.threshold_backward.grad_input(v, active, 0, grad_input=v)
    return out


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
