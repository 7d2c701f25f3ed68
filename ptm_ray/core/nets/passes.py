"""Passes over feature maps: average pooling, and instance norm → ReLU → average pooling as one, with all derivatives.

A matching step differentiates twice, and beside its convolutions it spends its time on passes over feature maps. All
derivatives are written out here, and made of the framework's kernels that do the most in a pass: batch norm with given
statistics is a line per map, the gradients of a group norm's scale and shift are sums over maps that write none, and
pooling is a product with a small matrix. That took a third off a whole step of 90 images against the same formulas in
single operations and autograd's second pass through the convolutions. On a CPU, `compiled_passes` does the same a map
at a time.

`gradient_moved` and `move` say how `gradient` and `forward` move along a direction; see `nets.by_hand`.
"""

from functools import cache
from typing import NamedTuple

import torch

from ptm_ray.core.types import Float, Tensor

#: Up to this many pixels a side (of the result), pooling is a product with a small matrix: 1.1 to 4 times as fast on a
#: CPU as adding up neighbours, but its work grows with the side.
PRODUCT_SIDE = 32
#: See `blocks.Passes`.
ANY_MAPS = False


@cache
def _pooling_matrix(columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(4 · columns, columns): two lines of pixels, one after the other, to the means of their 2×2 blocks."""
    pixels = torch.arange(4 * columns, device=device) % (2 * columns) // 2
    return (pixels[:, None] == torch.arange(columns, device=device)).to(dtype) / 4


def pooled(x: Tensor) -> Tensor:
    """(…, height, width) → (…, height // 2, width // 2): means of blocks; a last odd row or column is left out."""
    *lead, height, width = x.shape
    rows, columns = height // 2, width // 2
    x = x[..., : 2 * rows, : 2 * columns]
    if columns <= PRODUCT_SIDE:
        lines = x.reshape(-1, 4 * columns) @ _pooling_matrix(columns, x.device, x.dtype)
        return lines.view(*lead, rows, columns)
    pairs = x.reshape(*lead, rows, 2, 2 * columns)
    summed = (pairs[..., 0, :] + pairs[..., 1, :]).view(*lead, rows, columns, 2)
    return (summed[..., 0] + summed[..., 1]).mul_(0.25)


def unpooled(x: Tensor, height: int, width: int) -> Tensor:
    """Its adjoint: a quarter of every value four times, zeros in a last odd row or column."""
    *lead, rows, columns = x.shape
    if columns <= PRODUCT_SIDE:
        spread = x.reshape(-1, columns) @ _pooling_matrix(columns, x.device, x.dtype).t()
    else:
        line = (0.25 * x).repeat_interleave(2, dim=-1)
        spread = torch.cat((line, line), dim=-1)
    spread = spread.view(*lead, 2 * rows, 2 * columns)
    odd = (0, width - 2 * columns, 0, height - 2 * rows)
    return torch.nn.functional.pad(spread, odd) if any(odd) else spread


class Statistics(NamedTuple):
    """Of every map: its mean, 1 / √(variance + ε), and the line that norm, scale and shift are: γ x̂ + β."""

    mean: Float[Tensor, "batch maps"]
    rstd: Float[Tensor, "batch maps"]
    slope: Float[Tensor, "batch maps"]
    offset: Float[Tensor, "batch maps"]


class Scale(NamedTuple):
    """γ and β of the norm, one of each for a map; or a direction in them."""

    weight: Float[Tensor, " maps"]
    bias: Float[Tensor, " maps"]


class Moved(NamedTuple):
    """How convolved maps x and p move, and of each map the means of ẋ and of ẋ x̂."""

    x: Float[Tensor, "batch maps height width"]
    pooled: Float[Tensor, "batch maps rows columns"]
    mean: Float[Tensor, "batch maps"]
    mean_hat: Float[Tensor, "batch maps"]


def _per_map(values: Float[Tensor, "batch maps"]) -> Float[Tensor, "batch maps 1 1"]:
    return values[:, :, None, None]


def _line(
    x: Float[Tensor, "batch maps height width"], slope: Float[Tensor, "batch maps"], offset: Float[Tensor, "batch maps"]
) -> Float[Tensor, "batch maps height width"]:
    """slope · x + offset. Batch norm with given statistics is this in one pass; multiplying and adding are two."""
    maps = x.view(1, slope.numel(), *x.shape[2:])
    given = slope.view(-1), offset.view(-1), *_no_statistics(slope.numel(), x.device, x.dtype)
    return torch.native_batch_norm(maps, *given, False, 0.0, 0.0)[0].view(x.shape)


@cache
def _no_statistics(maps: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means and variances that change nothing."""
    return torch.zeros(maps, device=device, dtype=dtype), torch.ones(maps, device=device, dtype=dtype)


def _sums(
    v: Float[Tensor, "batch maps height width"],
    x: Float[Tensor, "batch maps height width"],
    mean: Float[Tensor, "batch maps"],
    rstd: Float[Tensor, "batch maps"],
) -> tuple[Float[Tensor, "batch maps"], Float[Tensor, "batch maps"]]:
    """Of each map, Σ v and Σ v x̂, x̂ = (x − mean) · rstd.

    They are the gradients of a group norm's shift and scale, which come in one pass that writes no map.
    """
    pixels, maps = v.shape[2] * v.shape[3], mean.numel()
    # It wants a scale, though these two don't depend on it.
    given = v.view(1, maps, -1), x.view(1, maps, -1), mean.view(1, maps), rstd.view(1, maps), rstd.view(-1)
    _, hat, plain = torch.ops.aten.native_group_norm_backward(*given, 1, maps, pixels, maps, [False, True, True])
    return plain.view(mean.shape), hat.view(mean.shape)


def _where_active_(v: Tensor, normed: Tensor) -> Tensor:
    """v where the ReLU lets something through, else 0; in place. Multiplying by a mask takes several times as long."""
    out: Tensor = torch.ops.aten.threshold_backward.grad_input(v, normed, 0, grad_input=v)
    return out


def forward(x: Tensor, scale: Scale, eps: float) -> tuple[Tensor, Statistics]:
    """p = pool(relu(γ x̂ + β)), x̂ = (x − μ) r of each map, r = 1 / √(σ² + ε); and what is known of the maps."""
    images, maps, height, width = x.shape
    # Instance norm is group norm with a group per map.
    y, mean, rstd = torch.native_group_norm(x, *scale, images, maps, height * width, maps, eps)
    slope = scale.weight * rstd
    return pooled(y.relu_()), Statistics(mean, rstd, slope, torch.addcmul(scale.bias, slope, mean, value=-1))


def gradient(grad: Tensor, x: Tensor, scale: Scale, stats: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, γ and β, from the gradient of p.

    With P(v) = v − mean v − x̂ · mean(v x̂) and g the gradient of γ x̂ + β: ∂x = γ r P(g), ∂γ = Σ g x̂, ∂β = Σ g.
    """
    images, maps, height, width = x.shape
    g = _where_active_(unpooled(grad, height, width), _line(x, stats.slope, stats.offset))
    sizes = images, maps, height * width, maps
    of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
        g, x, stats.mean, stats.rstd, scale.weight, *sizes, [True, True, True]
    )
    return of_x, of_weight, of_bias


def move(dot: Tensor, x: Tensor, dot_scale: Scale, stats: Statistics) -> Moved:
    """p as x, γ and β move by ẋ, γ̇ and β̇: γ x̂ + β moves by γ r P(ẋ) + γ̇ x̂ + β̇."""
    mu, r, slope, offset = stats
    total, total_hat = _sums(dot, x, mu, r)
    pixels = x.shape[2] * x.shape[3]
    mean, mean_hat = total / pixels, total_hat / pixels
    of_x = (dot_scale.weight - slope * mean_hat) * r
    moved = _line(x, of_x, dot_scale.bias - slope * mean - of_x * mu).addcmul_(dot, _per_map(slope))
    return Moved(dot, pooled(_where_active_(moved, _line(x, slope, offset))), mean, mean_hat)


def gradient_moved(
    grads: tuple[Tensor, Tensor], x: Tensor, scales: tuple[Scale, Scale], stats: Statistics, moved: Moved
) -> tuple[Tensor, Tensor, Tensor]:
    """How what `gradient` gives moves; `grads`: the gradient of p, and how that moves.

    The product rule on γ r P(g), with x̂ moving by r P(ẋ) and r by −r² mean(ẋ x̂): all parts of a map are combinations
    of g, ġ, x, ẋ and 1.
    """
    height, width = x.shape[2:]
    (weight, _), (dot_weight, _) = scales
    mu, r, slope, offset = stats
    dot, k, rk_hat = moved.x, moved.mean, r * moved.mean_hat
    normed = _line(x, slope, offset)
    g, dot_g = (_where_active_(unpooled(grad, height, width), normed) for grad in grads)
    (g_sum, g_hat), (dot_g_sum, dot_g_hat) = (_sums(v, x, mu, r) for v in (g, dot_g))
    g_dot = _sums(g, dot, *(plain.view(r.shape) for plain in _no_statistics(r.numel(), r.device, r.dtype)))[1]
    # Σ g x̂ moves by this as g and as x̂ does.
    hat_moved = dot_g_hat + r * (g_dot - k * g_sum) - rk_hat * g_hat
    # ∂x needs means over pixels of q = γ g and of q x̂, and how they move as q does by γ ġ + γ̇ g: here r times those.
    share = r / (height * width)
    q, q_hat = weight * g_sum, weight * g_hat
    dot_q, dot_q_hat = dot_weight * g_sum + weight * dot_g_sum, dot_weight * g_hat + weight * hat_moved
    of_x = share * r * (2 * rk_hat * q_hat - dot_q_hat)
    of_dot = share * r * q_hat
    out = _line(x, of_x, share * (rk_hat * q - dot_q) + of_dot * k - of_x * mu)
    out.addcmul_(dot, _per_map(of_dot), value=-1).addcmul_(dot_g, _per_map(slope))
    out.addcmul_(g, _per_map(r * dot_weight - rk_hat * slope))
    return out, hat_moved.sum(0), dot_g_sum.sum(0)
