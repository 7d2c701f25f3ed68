"""`nets.passes` on a CPU, compiled: loops over single maps, which read each from memory once and write its result once.

The framework's kernels go through all maps one after the other, so that between two of them every map has left the
processor's cache. On one thread whole matching steps became 1.1 times (width 128) to 1.3 times (width 32) as fast.
Importing this needs numba.

Sums over maps of a channel are left to the framework, so results don't depend on the number of threads.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from ptm_ray.core.nets.compiling import Array, Arrays, arrays, compiled, spread
from ptm_ray.core.nets.passes import Moved, Scale, Statistics
from ptm_ray.core.types import Tensor

#: See `blocks.Passes`.
ANY_MAPS = False


def _over_maps(loop: Callable[..., None], x: Tensor, *rest: Tensor | tuple[Tensor, ...] | float) -> None:
    """Runs a compiled loop over all maps of x, (batch, maps, height, width).

    It gets the first map of a thread's share, the one after its last, and all arrays whole.
    """
    given = _by_map(arrays((x, *rest)))
    spread(lambda first, stop: loop(first, stop, *given), x.shape[0] * x.shape[1], x.numel())


def _by_map(value: Any) -> Any:
    """Batch and maps as one axis, whatever follows them as it is; of all arrays of a tuple."""
    if isinstance(value, tuple):
        return tuple([_by_map(one) for one in value])
    several = isinstance(value, np.ndarray) and value.ndim > 1
    return value.reshape(-1, *value.shape[2:]) if several else value


@compiled
def _pool(maps: Array, pooled: Array) -> None:
    """One map, (height, width): means of 2×2 blocks."""
    rows, columns = pooled.shape
    quarter = maps.dtype.type(0.25)
    for i in range(rows):
        upper, lower, means = maps[2 * i], maps[2 * i + 1], pooled[i]
        for j in range(columns):
            means[j] = quarter * (upper[2 * j] + upper[2 * j + 1] + lower[2 * j] + lower[2 * j + 1])


@compiled
def _unpool(pooled: Array, maps: Array) -> None:
    """Its adjoint; a last odd row or column of the map is left as it was."""
    rows, columns = pooled.shape
    quarter = maps.dtype.type(0.25)
    for i in range(rows):
        upper, lower, means = maps[2 * i], maps[2 * i + 1], pooled[i]
        for j in range(columns):
            upper[2 * j] = upper[2 * j + 1] = quarter * means[j]
        for j in range(2 * columns):
            lower[j] = upper[j]


@compiled
def _forward(first: int, stop: int, x: Array, scale: Arrays, eps: float, pooled: Array, stats: Arrays) -> None:
    weight, bias = scale
    mean, rstd, slope, offset = stats
    number = x.dtype.type
    zero, pixels = number(0), number(x[0].size)
    active = np.empty(x.shape[1:], x.dtype)
    shown = active.ravel()
    for m in range(first, stop):
        given = x[m].ravel()
        total, squares = zero, zero
        for p in range(given.size):
            total += given[p]
        mu = total / pixels
        for p in range(given.size):
            squares += (given[p] - mu) * (given[p] - mu)
        r = number(1) / np.sqrt(squares / pixels + number(eps))
        channel = m % len(weight)
        a = weight[channel] * r
        b = bias[channel] - a * mu
        mean[m], rstd[m], slope[m], offset[m] = mu, r, a, b
        for p in range(given.size):
            normed = a * given[p] + b
            shown[p] = zero if normed <= zero else normed
        _pool(active, pooled[m])


@compiled
def _gradient(first: int, stop: int, x: Array, grad: Array, stats: Arrays, of_x: Array, of_scale: Arrays) -> None:
    mean, rstd, slope, offset = stats
    of_weight, of_bias = of_scale
    number = x.dtype.type
    zero, pixels = number(0), number(x[0].size)
    spread = np.zeros(x.shape[1:], x.dtype)
    g = spread.ravel()
    for m in range(first, stop):
        mu, r, a, b = mean[m], rstd[m], slope[m], offset[m]
        given, out = x[m].ravel(), of_x[m].ravel()
        _unpool(grad[m], spread)
        total, total_hat = zero, zero
        for p in range(given.size):
            active = zero if a * given[p] + b <= zero else g[p]
            total += active
            total_hat += active * (given[p] - mu)
            out[p] = a * active
        total_hat *= r
        of_bias[m], of_weight[m] = total, total_hat
        level, rise = a * total / pixels, a * r * total_hat / pixels
        for p in range(given.size):
            out[p] -= level + rise * (given[p] - mu)


@compiled
def _move(
    first: int, stop: int, x: Array, dot: Array, dot_scale: Arrays, stats: Arrays, pooled: Array, means: Arrays
) -> None:
    dot_weight, dot_bias = dot_scale
    mean, rstd, slope, offset = stats
    dot_mean, dot_mean_hat = means
    number = x.dtype.type
    zero, pixels = number(0), number(x[0].size)
    active = np.empty(x.shape[1:], x.dtype)
    shown = active.ravel()
    for m in range(first, stop):
        mu, r, a, b = mean[m], rstd[m], slope[m], offset[m]
        given, moves = x[m].ravel(), dot[m].ravel()
        total, total_hat = zero, zero
        for p in range(given.size):
            total += moves[p]
            total_hat += moves[p] * (given[p] - mu)
        k, k_hat = total / pixels, total_hat * r / pixels
        dot_mean[m], dot_mean_hat[m] = k, k_hat
        channel = m % len(dot_weight)
        rise = (dot_weight[channel] - a * k_hat) * r
        level = dot_bias[channel] - a * k - rise * mu
        for p in range(given.size):
            moved = a * moves[p] + rise * given[p] + level
            shown[p] = zero if a * given[p] + b <= zero else moved
        _pool(active, pooled[m])


@compiled
def _gradient_moved(
    first: int,
    stop: int,
    x: Array,
    grads: Arrays,
    weights: Arrays,
    stats: Arrays,
    dot: Array,
    means: Arrays,
    of_maps: Array,
    of_scale: Arrays,
) -> None:
    grad, dot_grad = grads
    weight, dot_weight = weights
    mean, rstd, slope, offset = stats
    dot_mean, dot_mean_hat = means
    of_weight, of_bias = of_scale
    number = x.dtype.type
    zero, two, pixels = number(0), number(2), number(x[0].size)
    spread, dot_spread = np.zeros(x.shape[1:], x.dtype), np.zeros(x.shape[1:], x.dtype)
    g, dot_g = spread.ravel(), dot_spread.ravel()
    for m in range(first, stop):
        mu, r, a, b = mean[m], rstd[m], slope[m], offset[m]
        k, rk_hat = dot_mean[m], r * dot_mean_hat[m]
        w, dot_w = weight[m % len(weight)], dot_weight[m % len(weight)]
        given, moves, out = x[m].ravel(), dot[m].ravel(), of_maps[m].ravel()
        _unpool(grad[m], spread)
        _unpool(dot_grad[m], dot_spread)
        of_g = r * dot_w - rk_hat * a
        g_sum, g_hat, dot_g_sum, dot_g_hat, g_dot = zero, zero, zero, zero, zero
        for p in range(given.size):
            off = a * given[p] + b <= zero
            active, dot_active = zero if off else g[p], zero if off else dot_g[p]
            g_sum += active
            g_hat += active * (given[p] - mu)
            dot_g_sum += dot_active
            dot_g_hat += dot_active * (given[p] - mu)
            g_dot += active * moves[p]
            out[p] = a * dot_active + of_g * active
        g_hat *= r
        hat_moved = dot_g_hat * r + r * (g_dot - k * g_sum) - rk_hat * g_hat
        of_weight[m], of_bias[m] = hat_moved, dot_g_sum
        share = r / pixels
        q, q_hat = w * g_sum, w * g_hat
        dot_q, dot_q_hat = dot_w * g_sum + w * dot_g_sum, dot_w * g_hat + w * hat_moved
        of_x, of_dot = share * r * (two * rk_hat * q_hat - dot_q_hat), share * r * q_hat
        level = share * (rk_hat * q - dot_q) + of_dot * k - of_x * mu
        for p in range(given.size):
            out[p] += of_x * given[p] + level - of_dot * moves[p]


@cache
def _load(dtype: torch.dtype) -> None:
    """Compiles or loads what comes after `forward` now, by a map of nothing.

    Loaded on the way back through a student, with all its graphs stored, it would stay in the memory above them, which
    the next step then doesn't fit into: 0.7 GB more for 20 images and 40 steps.
    """
    x, pooled, per_map = (torch.zeros(1, 1, *size, dtype=dtype) for size in ((2, 2), (1, 1), ()))
    scale, stats = Scale(per_map[0], per_map[0]), Statistics(*[per_map] * 4)
    gradient(pooled, x, scale, stats)
    gradient_moved((pooled, pooled), x, (scale, scale), stats, move(x, x, scale, stats))


def forward(x: Tensor, scale: Scale, eps: float) -> tuple[Tensor, Statistics]:
    """As `passes.forward`."""
    _load(x.dtype)
    batch, maps, height, width = x.shape
    pooled = x.new_empty(batch, maps, height // 2, width // 2)
    stats = Statistics(*x.new_empty(4, batch, maps))
    _over_maps(_forward, x, scale, eps, pooled, stats)
    return pooled, stats


def gradient(grad: Tensor, x: Tensor, scale: Scale, stats: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """As `passes.gradient`; the line that is in `stats` holds the scale."""
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_weight, of_bias = x.new_empty(2, *x.shape[:2])
    _over_maps(_gradient, x, grad, stats, of_x, (of_weight, of_bias))
    return of_x, of_weight.sum(0), of_bias.sum(0)


def move(dot: Tensor, x: Tensor, dot_scale: Scale, stats: Statistics) -> Moved:
    """As `passes.move`."""
    batch, maps, height, width = x.shape
    pooled = x.new_empty(batch, maps, height // 2, width // 2)
    mean, mean_hat = x.new_empty(2, batch, maps)
    _over_maps(_move, x, dot, dot_scale, stats, pooled, (mean, mean_hat))
    return Moved(dot, pooled, mean, mean_hat)


def gradient_moved(
    grads: tuple[Tensor, Tensor], x: Tensor, scales: tuple[Scale, Scale], stats: Statistics, moved: Moved
) -> tuple[Tensor, Tensor, Tensor]:
    """As `passes.gradient_moved`, whose names its kernel has."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_weight, of_bias = x.new_empty(2, *x.shape[:2])
    weights, means = (scales[0].weight, scales[1].weight), (moved.mean, moved.mean_hat)
    _over_maps(_gradient_moved, x, grads, weights, stats, moved.x, means, out, (of_weight, of_bias))
    return out, of_weight.sum(0), of_bias.sum(0)
