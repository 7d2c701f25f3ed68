"""`nets.passes` on a GPU: a kernel each. What is computed between reading maps and writing them stays in registers.

The framework's kernels write and read all maps again for every operation. Here a program goes over the maps of a few
channels of one image: first for their sums, then, while they are still in the cache, for the result. Maps of any order
in memory and any precision are taken as they are, best of all channels last, which tensor cores want; all sums are in
float32 at the least. Importing this needs triton, which comes with builds of torch for GPUs.

Sums over maps of a channel are left to the framework: no atomics, so the same bits every time. Nothing may be assumed
to be finite: a student that diverged must be seen to.
"""
# Types of kernels are found by their compiler.
# mypy: disable-error-code="no-untyped-def"

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from ptm_ray.core.nets.passes import Moved, Scale, Statistics
from ptm_ray.core.types import Tensor

#: See `blocks.Passes`.
ANY_MAPS = True
#: Values of one tensor that a program looks at together, and each of its threads.
VALUES, VALUES_A_THREAD = 4096, 16
#: Neighbouring channels of a program, of maps that lie channels last: the most and, where a GPU would otherwise be left
#: with fewer programs than it has processors for, the least, which is a whole access to memory.
MOST_CHANNELS, LEAST_CHANNELS, PROGRAMS = 32, 8, 512


def _kernel(function: Callable[..., Any]) -> Any:
    """Compiled at its first call for a kind of maps. Whatever was put around the function stays outside."""
    return triton.jit(inspect.unwrap(function))


@_kernel
def _mine(maps, channels: tl.constexpr):
    """Which image, and which of its channels, (1, 1, channels)."""
    groups = tl.cdiv(maps, channels)
    image = (tl.program_id(0) // groups).to(tl.int64)
    return image, (tl.program_id(0) % groups) * channels + tl.arange(0, channels)[None, None, :]


@_kernel
def _pixels(first, channel, by, height: tl.constexpr, width: tl.constexpr, blocks: tl.constexpr):
    """Offsets of pixels in an image's maps, (4, blocks, channels), and which are there: a 2×2 block's are axis 0."""
    across: tl.constexpr = (width + 1) // 2
    block, pixel = first + tl.arange(0, blocks)[None, :, None], tl.arange(0, 4)[:, None, None]
    row, column = block // across * 2 + pixel // 2, block % across * 2 + pixel % 2
    return channel * by[1] + row * by[2] + column * by[3], (row < height) & (column < width)


@_kernel
def _means(first, channel, by, height: tl.constexpr, width: tl.constexpr, blocks: tl.constexpr):
    """Offsets of the blocks' means, (1, blocks, channels); a last odd row or column has none."""
    across: tl.constexpr = (width + 1) // 2
    block = first + tl.arange(0, blocks)[None, :, None]
    row, column = block // across, block % across
    return channel * by[1] + row * by[2] + column * by[3], (row < height // 2) & (column < width // 2)


@_kernel
def _loaded(pointers, there, wide: tl.constexpr):
    """Values of maps, 0 beside them."""
    return tl.load(pointers, there, 0).to(wide)


@_kernel
def _known(mean, rstd, slope, offset, own, held):
    """`Statistics` of a program's maps, (1, 1, channels) each."""
    mu, r = tl.load(mean + own, held, 0), tl.load(rstd + own, held, 0)
    return mu, r, tl.load(slope + own, held, 0), tl.load(offset + own, held, 0)


@_kernel
def _of_blocks(values):
    """Sums over the pixels of each block, (1, blocks, channels): a thread has all four of them."""
    return tl.sum(values, 0, keep_dims=True)


@_kernel
def _total(sums):
    """Over a map's blocks, (1, 1, channels)."""
    return tl.sum(sums, 1, keep_dims=True)


@_kernel
def _forward(
    x,
    x_by,
    weight,
    bias,
    pooled,
    pooled_by,
    mean,
    rstd,
    slope,
    offset,
    maps,
    eps: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
    channels: tl.constexpr,
    wide: tl.constexpr,
):
    image, channel = _mine(maps, channels)
    held, own = channel < maps, image * maps + channel
    pixels: tl.constexpr = height * width
    count: tl.constexpr = (height + 1) // 2 * ((width + 1) // 2)
    x += image * x_by[0]
    pooled += image * pooled_by[0]
    total = tl.zeros((1, blocks, channels), wide)
    for first in range(0, count, blocks):
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        total += _of_blocks(_loaded(x + at, there & held, wide))
    mu = _total(total) / pixels
    squares = tl.zeros((1, blocks, channels), wide)
    for first in range(0, count, blocks):
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        centred = tl.where(there, _loaded(x + at, there & held, wide) - mu, 0)
        squares += _of_blocks(centred * centred)
    r = 1 / tl.sqrt(_total(squares) / pixels + eps)
    a = tl.load(weight + channel, held, 0) * r
    b = tl.load(bias + channel, held, 0) - a * mu
    tl.store(mean + own, mu, held)
    tl.store(rstd + own, r, held)
    tl.store(slope + own, a, held)
    tl.store(offset + own, b, held)
    for first in range(0, count, blocks):
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        normed = a * _loaded(x + at, there & held, wide) + b
        means = 0.25 * _of_blocks(tl.where(normed <= 0, 0, normed))
        at, there = _means(first, channel, pooled_by, height, width, blocks)
        tl.store(pooled + at, means, there & held)


@_kernel
def _gradient(
    x,
    x_by,
    grad,
    grad_by,
    mean,
    rstd,
    slope,
    offset,
    of_x,
    of_weight,
    of_bias,
    maps,
    height: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
    channels: tl.constexpr,
    wide: tl.constexpr,
):
    image, channel = _mine(maps, channels)
    held, own = channel < maps, image * maps + channel
    pixels: tl.constexpr = height * width
    count: tl.constexpr = (height + 1) // 2 * ((width + 1) // 2)
    x += image * x_by[0]
    of_x += image * x_by[0]
    grad += image * grad_by[0]
    mu, r, a, b = _known(mean, rstd, slope, offset, own, held)
    sums = tl.zeros((1, blocks, channels), wide)
    sums_hat = sums
    for first in range(0, count, blocks):
        at, there = _means(first, channel, grad_by, height, width, blocks)
        spread = 0.25 * _loaded(grad + at, there & held, wide)
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        given = _loaded(x + at, there & held, wide)
        # Beside the map there is nothing, and its shift must not count.
        g = tl.where((a * given + b <= 0) | (there == 0), 0, spread)
        sums += _of_blocks(g)
        sums_hat += _of_blocks(g * (given - mu))
    total, total_hat = _total(sums), _total(sums_hat) * r
    tl.store(of_bias + own, total, held)
    tl.store(of_weight + own, total_hat, held)
    level, rise = a * total / pixels, a * r * total_hat / pixels
    for first in range(0, count, blocks):
        at, there = _means(first, channel, grad_by, height, width, blocks)
        spread = 0.25 * _loaded(grad + at, there & held, wide)
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        given = _loaded(x + at, there & held, wide)
        out = a * tl.where(a * given + b <= 0, 0, spread) - level - rise * (given - mu)
        tl.store(of_x + at, out, there & held)


@_kernel
def _move(
    x,
    x_by,
    dot,
    dot_weight,
    dot_bias,
    mean,
    rstd,
    slope,
    offset,
    pooled,
    pooled_by,
    dot_mean,
    dot_mean_hat,
    maps,
    height: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
    channels: tl.constexpr,
    wide: tl.constexpr,
):
    image, channel = _mine(maps, channels)
    held, own = channel < maps, image * maps + channel
    pixels: tl.constexpr = height * width
    count: tl.constexpr = (height + 1) // 2 * ((width + 1) // 2)
    x += image * x_by[0]
    dot += image * x_by[0]
    pooled += image * pooled_by[0]
    mu, r, a, b = _known(mean, rstd, slope, offset, own, held)
    sums = tl.zeros((1, blocks, channels), wide)
    sums_hat = sums
    for first in range(0, count, blocks):
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        moves = _loaded(dot + at, there & held, wide)
        sums += _of_blocks(moves)
        sums_hat += _of_blocks(moves * (_loaded(x + at, there & held, wide) - mu))
    k, k_hat = _total(sums) / pixels, _total(sums_hat) * r / pixels
    tl.store(dot_mean + own, k, held)
    tl.store(dot_mean_hat + own, k_hat, held)
    rise = (tl.load(dot_weight + channel, held, 0) - a * k_hat) * r
    level = tl.load(dot_bias + channel, held, 0) - a * k - rise * mu
    for first in range(0, count, blocks):
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        given, moves = _loaded(x + at, there & held, wide), _loaded(dot + at, there & held, wide)
        means = 0.25 * _of_blocks(tl.where(a * given + b <= 0, 0, a * moves + rise * given + level))
        at, there = _means(first, channel, pooled_by, height, width, blocks)
        tl.store(pooled + at, means, there & held)


@_kernel
def _gradient_moved(
    x,
    x_by,
    grad,
    grad_by,
    dot_grad,
    weight,
    dot_weight,
    mean,
    rstd,
    slope,
    offset,
    dot,
    dot_mean,
    dot_mean_hat,
    of_maps,
    of_weight,
    of_bias,
    maps,
    height: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
    channels: tl.constexpr,
    wide: tl.constexpr,
):
    image, channel = _mine(maps, channels)
    held, own = channel < maps, image * maps + channel
    pixels: tl.constexpr = height * width
    count: tl.constexpr = (height + 1) // 2 * ((width + 1) // 2)
    x += image * x_by[0]
    dot += image * x_by[0]
    of_maps += image * x_by[0]
    grad += image * grad_by[0]
    dot_grad += image * grad_by[0]
    mu, r, a, b = _known(mean, rstd, slope, offset, own, held)
    k, rk_hat = tl.load(dot_mean + own, held, 0), r * tl.load(dot_mean_hat + own, held, 0)
    w, dot_w = tl.load(weight + channel, held, 0), tl.load(dot_weight + channel, held, 0)
    g_sums = tl.zeros((1, blocks, channels), wide)
    g_hats, dot_g_sums, dot_g_hats, g_dots = g_sums, g_sums, g_sums, g_sums
    for first in range(0, count, blocks):
        at, there = _means(first, channel, grad_by, height, width, blocks)
        spread = 0.25 * _loaded(grad + at, there & held, wide)
        dot_spread = 0.25 * _loaded(dot_grad + at, there & held, wide)
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        given, moves = _loaded(x + at, there & held, wide), _loaded(dot + at, there & held, wide)
        off = (a * given + b <= 0) | (there == 0)
        g, dot_g = tl.where(off, 0, spread), tl.where(off, 0, dot_spread)
        g_sums += _of_blocks(g)
        g_hats += _of_blocks(g * (given - mu))
        dot_g_sums += _of_blocks(dot_g)
        dot_g_hats += _of_blocks(dot_g * (given - mu))
        g_dots += _of_blocks(g * moves)
    g_sum, g_hat, dot_g_sum = _total(g_sums), _total(g_hats) * r, _total(dot_g_sums)
    hat_moved = _total(dot_g_hats) * r + r * (_total(g_dots) - k * g_sum) - rk_hat * g_hat
    tl.store(of_weight + own, hat_moved, held)
    tl.store(of_bias + own, dot_g_sum, held)
    share = r / pixels
    q, q_hat = w * g_sum, w * g_hat
    dot_q, dot_q_hat = dot_w * g_sum + w * dot_g_sum, dot_w * g_hat + w * hat_moved
    rise, of_dot, of_g = share * r * (2 * rk_hat * q_hat - dot_q_hat), share * r * q_hat, r * dot_w - rk_hat * a
    level = share * (rk_hat * q - dot_q) + of_dot * k - rise * mu
    for first in range(0, count, blocks):
        at, there = _means(first, channel, grad_by, height, width, blocks)
        spread = 0.25 * _loaded(grad + at, there & held, wide)
        dot_spread = 0.25 * _loaded(dot_grad + at, there & held, wide)
        at, there = _pixels(first, channel, x_by, height, width, blocks)
        given, moves = _loaded(x + at, there & held, wide), _loaded(dot + at, there & held, wide)
        active = tl.where(a * given + b <= 0, 0, a * dot_spread + of_g * spread)
        tl.store(of_maps + at, active + rise * given + level - of_dot * moves, there & held)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 < x.stride(3)


def _launch(kernel: Any, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel over all maps of x, (batch, maps, height, width). Its other maps must lie as they do."""
    images, maps, height, width = x.shape
    channels = 1
    if _channels_last(x):
        channels = min(MOST_CHANNELS, triton.next_power_of_2(maps))
        while channels > LEAST_CHANNELS and images * triton.cdiv(maps, channels) < PROGRAMS:
            channels //= 2
    count = (height + 1) // 2 * ((width + 1) // 2)
    blocks = min(triton.next_power_of_2(count), VALUES // (4 * channels))
    warps = min(16, max(1, 4 * blocks * channels // (32 * VALUES_A_THREAD)))
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    programs = images * triton.cdiv(maps, channels)
    sizes = {"blocks": blocks, "channels": channels, "wide": wide, "num_warps": warps}
    kernel[(programs,)](x, x.stride(), *arguments, maps, height=height, width=width, **constants, **sizes)


def _laid_out_as(model: Tensor, given: Tensor) -> Tensor:
    return given if given.stride() == model.stride() else torch.empty_like(model).copy_(given)


def _per_map(x: Tensor, count: int) -> Tensor:
    """(count, batch, maps): of every map so many numbers, no less precise than float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty(count, *x.shape[:2], device=x.device, dtype=wide)


def _pooled_like(x: Tensor) -> Tensor:
    images, maps, height, width = x.shape
    order = torch.channels_last if _channels_last(x) else torch.contiguous_format
    size = images, maps, height // 2, width // 2
    return torch.empty(size, device=x.device, dtype=x.dtype, memory_format=order)


def forward(x: Tensor, scale: Scale, eps: float) -> tuple[Tensor, Statistics]:
    """As `passes.forward`."""
    pooled, stats = _pooled_like(x), Statistics(*_per_map(x, 4))
    _launch(_forward, x, *scale, pooled, pooled.stride(), *stats, eps=eps)
    return pooled, stats


def gradient(grad: Tensor, x: Tensor, scale: Scale, stats: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """As `passes.gradient`; the line that is in `stats` holds the scale."""
    of_x, of_scale = torch.empty_like(x), _per_map(x, 2)
    _launch(_gradient, x, grad, grad.stride(), *stats, of_x, *of_scale)
    of_weight, of_bias = of_scale.sum(1)
    return of_x, of_weight, of_bias


def move(dot: Tensor, x: Tensor, dot_scale: Scale, stats: Statistics) -> Moved:
    """As `passes.move`."""
    pooled, means = _pooled_like(x), _per_map(x, 2)
    dot = _laid_out_as(x, dot)
    _launch(_move, x, dot, *dot_scale, *stats, pooled, pooled.stride(), *means)
    return Moved(dot, pooled, *means)


def gradient_moved(
    grads: tuple[Tensor, Tensor], x: Tensor, scales: tuple[Scale, Scale], stats: Statistics, moved: Moved
) -> tuple[Tensor, Tensor, Tensor]:
    """As `passes.gradient_moved`, whose names its kernel has."""
    out, of_scale = torch.empty_like(x), _per_map(x, 2)
    grad, dot_grad = grads[0], _laid_out_as(grads[0], grads[1])
    given = grad, grad.stride(), dot_grad, scales[0].weight, scales[1].weight, *stats
    _launch(_gradient_moved, x, *given, moved.x, moved.mean, moved.mean_hat, out, *of_scale)
    of_weight, of_bias = of_scale.sum(1)
    return out, of_weight, of_bias
