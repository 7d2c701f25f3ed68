"""The block that sees images, on a CPU: convolution, norm, ReLU and pooling, a few images at a time.

Its maps are the largest of a network and the cheapest: of one channel or three they are products of 9 or 27 numbers. So
none of them leaves the cache. What is kept of a map is where the ReLU lets something through, and the way back makes do
with that: there a map's gradient is

    what came from above, where it passes  +  multiples of the map and of how it moves  +  a number

and the last two are products of numbers with w, the pixels around each one in all channels. What they sum up to
follows from two sums over the image, of w and of w wᵀ, and what they give to the image is one more product with w. Only
what came from above is summed pixel by pixel. Own design. Importing this needs numba.

The mean of an image's channel is taken off it, and off the zeros around it. The norm takes no notice, and sums of
numbers around zero lose less to rounding.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ptm_ray.core.nets.compiling import Array, Arrays, arrays, compiled, spread
from ptm_ray.core.nets.passes import Scale
from ptm_ray.core.types import Float, Tensor

#: Numbers in the maps that are worked on at one time: more would leave the cache.
AT_ONCE = 2**17
#: Pixels that are summed over in the images' own precision, before such sums are added in double precision.
PART = 256


@compiled
def _look_around(images: Array, memory: Array, at: int) -> None:
    """w of every pixel, from row `at` on: (images, channels, height, width) as (images, 9 · channels, pixels)."""
    count, channels, height, width = images.shape
    frame = np.empty((height + 2, width + 2), images.dtype)
    for i in range(count):
        for c in range(channels):
            image = images[i, c]
            mean = images.dtype.type(image.sum() / image.size)
            frame[:] = -mean
            for y in range(height):
                for x in range(width):
                    frame[y + 1, x + 1] = image[y, x] - mean
            for t in range(9):
                seen = memory[i, at + 9 * c + t]
                for y in range(height):
                    line, row = frame[y + t // 3, t % 3 :], seen[y * width :]
                    for x in range(width):
                        row[x] = line[x]


@compiled
def _put_back(around: Array, images: Array) -> None:
    """The adjoint, but for the means."""
    count, channels, height, width = images.shape
    frame = np.empty((height + 2, width + 2), images.dtype)
    for i in range(count):
        for c in range(channels):
            frame[:] = 0
            for t in range(9):
                seen = around[i, 9 * c + t]
                for y in range(height):
                    line, row = frame[y + t // 3, t % 3 :], seen[y * width :]
                    for x in range(width):
                        line[x] += row[x]
            for y in range(height):
                for x in range(width):
                    images[i, c, y, x] = frame[y + 1, x + 1]


@compiled
def _moments(memory: Array, at: int, sums: Array, products: Array) -> None:
    """Σ w, (images, n), and Σ (w − mean)(w − mean)ᵀ, (images, n, n), over all pixels; both in double precision."""
    count, pixels, zero = sums.shape[1], memory.shape[2], memory.dtype.type(0)
    sums[:], products[:] = 0, 0
    for i in range(len(sums)):
        for first in range(0, pixels, PART):
            stop = min(first + PART, pixels)
            for t in range(count):
                one, total = memory[i, at + t][first:stop], zero
                for p in range(len(one)):
                    total += one[p]
                sums[i, t] += total
                for s in range(0, t + 1, 3):
                    a, b, c = memory[i, at + s], memory[i, at + s + 1], memory[i, at + s + 2]
                    a, b, c = a[first:stop], b[first:stop], c[first:stop]
                    of_a, of_b, of_c = zero, zero, zero
                    for p in range(len(one)):
                        of_a += one[p] * a[p]
                        of_b += one[p] * b[p]
                        of_c += one[p] * c[p]
                    products[i, t, s] += of_a
                    products[i, t, s + 1] += of_b
                    products[i, t, s + 2] += of_c
        for t in range(count):
            for s in range(t + 1):
                products[i, t, s] -= sums[i, t] * sums[i, s] / pixels
                products[i, s, t] = products[i, t, s]


@compiled
def _pool(pixels: Array, width: int, pooled: Array) -> None:
    """Means of a map's 2×2 blocks."""
    rows, columns = pooled.shape
    quarter = pixels.dtype.type(0.25)
    for i in range(rows):
        upper, lower, means = pixels[2 * i * width :], pixels[(2 * i + 1) * width :], pooled[i]
        for j in range(columns):
            means[j] = quarter * (upper[2 * j] + upper[2 * j + 1] + lower[2 * j] + lower[2 * j + 1])


@compiled
def _activate(
    memory: Array, width: int, scale: Arrays, eps: float, pooled: Array, passes: Array, stats: Arrays
) -> None:
    """Norm, ReLU and pooling of maps, (images, maps, pixels), which are overwritten; and where something passes."""
    weight, bias = scale
    mean, rstd = stats
    number = memory.dtype.type
    zero, pixels = number(0), number(memory.shape[2])
    for i, m in np.ndindex(passes.shape[:2]):
        given, passed = memory[i, m], passes[i, m]
        total, squares = zero, zero
        for p in range(len(given)):
            total += given[p]
        mu = total / pixels
        for p in range(len(given)):
            squares += (given[p] - mu) * (given[p] - mu)
        r = number(1) / np.sqrt(squares / pixels + number(eps))
        mean[i, m], rstd[i, m] = mu, r
        slope = weight[m] * r
        offset = bias[m] - slope * mu
        for p in range(len(given)):
            normed = slope * given[p] + offset
            # What is no number passes, so that a student that diverged is seen to.
            off = normed <= zero
            passed[p] = not off
            given[p] = zero if off else normed
        _pool(given, width, pooled[i, m])


@compiled
def _pool_passed(memory: Array, width: int, level: Array, passes: Array, pooled: Array) -> None:
    """Of maps, and of a number for each added to it, the means of 2×2 blocks of what passes."""
    zero = memory.dtype.type(0)
    for i, m in np.ndindex(passes.shape[:2]):
        given, passed, more = memory[i, m], passes[i, m], memory.dtype.type(level[i, m])
        for p in range(len(given)):
            given[p] = given[p] + more if passed[p] else zero
        _pool(given, width, pooled[i, m])


@compiled
def _pass_back(grad: Array, width: int, passes: Array, memory: Array, at: int, total: Array) -> None:
    """The adjoint, and what comes of it for the numbers: gradients of pooled maps as those of maps; and their sums."""
    rows, columns = grad.shape[2:]
    quarter, zero = grad.dtype.type(0.25), grad.dtype.type(0)
    for i, m in np.ndindex(grad.shape[:2]):
        pixels, passed = memory[i, at + m], passes[i, m]
        for j in range(rows):
            upper, lower = pixels[2 * j * width :], pixels[(2 * j + 1) * width :]
            shares = grad[i, m, j]
            for k in range(columns):
                upper[2 * k] = upper[2 * k + 1] = quarter * shares[k]
            # Of an odd number, the last column and row are in no block.
            for k in range(2 * columns, width):
                upper[k] = zero
            for k in range(width):
                lower[k] = upper[k]
        pixels[2 * rows * width :] = 0
        summed = zero
        for p in range(len(pixels)):
            value = pixels[p] if passed[p] else zero
            pixels[p] = value
            summed += value
        total[i, m] = summed


@compiled
def _found(
    kernel: Array,
    weight: Array,
    stats: Arrays,
    sums: Array,
    pixels: int,
    passed: Arrays,
    seen: Array,
    of_kernel: Array,
    of_scale: Arrays,
) -> None:
    """Gradients of kernel, scale and shift: see `passes.gradient`. `seen`: kernels times Σ (w − mean)(w − mean)ᵀ."""
    mean, rstd = stats
    around, total = passed
    of_weight, of_bias = of_scale
    for i, m in np.ndindex(total.shape):
        g, r, summed = around[i, m], float(rstd[i, m]), float(total[i, m])
        hat = -mean[i, m] * summed
        for t in range(len(g)):
            hat += float(kernel[m, t]) * g[t]
        of_weight[i, m], of_bias[i, m] = r * hat, summed
        slope = weight[m] * r
        level, rise = slope * summed / pixels, slope * r * r * hat / pixels
        for t in range(len(g)):
            of_kernel[i, m, t] = slope * g[t] - level * sums[i, t] - rise * seen[i, m, t]


@compiled
def _moved(
    kernels: Arrays,
    weight: Array,
    dot_scale: Arrays,
    stats: Arrays,
    sums: Array,
    pixels: int,
    seen: Array,
    means: Arrays,
    along: Array,
    level: Array,
) -> None:
    """How normed maps move, as a kernel and a number for each: see `passes.move`."""
    kernel, dot_kernel = kernels
    dot_weight, dot_bias = dot_scale
    mean, rstd = stats
    dot_mean, dot_mean_hat = means
    for i, m in np.ndindex(mean.shape):
        at, hat, r = 0.0, 0.0, float(rstd[i, m])
        for t in range(kernel.shape[1]):
            at += sums[i, t] * dot_kernel[m, t]
            hat += float(seen[i, m, t]) * dot_kernel[m, t]
        at, hat = at / pixels, r * hat / pixels
        dot_mean[i, m], dot_mean_hat[i, m] = at, hat
        slope = weight[m] * r
        rise = (dot_weight[m] - slope * hat) * r
        level[i, m] = dot_bias[m] - slope * at - rise * mean[i, m]
        for t in range(kernel.shape[1]):
            along[i, m, t] = slope * dot_kernel[m, t] + rise * kernel[m, t]


@compiled
def _found_moved(
    kernels: Arrays,
    weights: Arrays,
    stats: Arrays,
    sums: Array,
    pixels: int,
    passed: Arrays,
    dot_passed: Arrays,
    seen: Arrays,
    means: Arrays,
    of_kernel: Array,
    of_scale: Arrays,
    ways: Array,
    of_maps: Array,
) -> None:
    """How what `_found` finds moves: see `passes.gradient_moved`. And what leads to what the pixels see.

    `ways`: from what passes back now and before, for every map, and in its last row from 1. `of_maps`: by kernels, and
    by how they move, from what the pixels see.
    """
    kernel, dot_kernel = kernels
    weight, dot_weight = weights
    mean, rstd = stats
    around, total = passed
    dot_around, dot_total = dot_passed
    seen_kernel, seen_dot_kernel = seen
    dot_mean, dot_mean_hat = means
    of_weight, of_bias = of_scale
    maps, count = kernel.shape
    from_one = np.empty(count)
    for i in range(len(total)):
        from_one[:] = 0
        for m in range(maps):
            mu, r, w, dot_w = float(mean[i, m]), float(rstd[i, m]), float(weight[m]), float(dot_weight[m])
            g, dot_g, g_sum, dot_g_sum = around[i, m], dot_around[i, m], float(total[i, m]), float(dot_total[i, m])
            k, rk_hat, slope = float(dot_mean[i, m]), r * dot_mean_hat[i, m], w * r
            g_hat, dot_g_hat, g_dot = -mu * g_sum, -mu * dot_g_sum, -k * g_sum
            for t in range(count):
                g_hat += float(kernel[m, t]) * g[t]
                dot_g_hat += float(kernel[m, t]) * dot_g[t]
                g_dot += float(dot_kernel[m, t]) * g[t]
            g_hat *= r
            hat_moved = r * (dot_g_hat + g_dot) - rk_hat * g_hat
            of_weight[i, m], of_bias[i, m] = hat_moved, dot_g_sum
            of_g, share = r * dot_w - rk_hat * slope, r / pixels
            q, q_hat = w * g_sum, w * g_hat
            dot_q, dot_q_hat = dot_w * g_sum + w * dot_g_sum, dot_w * g_hat + w * hat_moved
            of_x, of_dot = share * r * (2 * rk_hat * q_hat - dot_q_hat), share * r * q_hat
            level = share * (rk_hat * q - dot_q)
            same, dot_same = level - of_x * mu + of_dot * k, of_dot * mu - share * q
            for t in range(count):
                a, b = kernel[m, t], dot_kernel[m, t]
                by_maps = of_x * seen_kernel[i, m, t] - of_dot * seen_dot_kernel[i, m, t]
                of_kernel[i, m, t] = slope * dot_g[t] + of_g * g[t] + by_maps + level * sums[i, t]
                ways[i, m, t], ways[i, maps + m, t] = slope * a, of_g * a + slope * b
                of_maps[i, m, t], of_maps[i, maps + m, t] = of_x * a - of_dot * b, -of_dot * a
                from_one[t] += same * a + dot_same * b
        ways[i, -1] = from_one


class FirstBlock:
    """As `by_hand`'s block of images: convolution, norm, ReLU and pooling, and the way back."""

    def __init__(
        self,
        images: Float[Tensor, "batch channels height width"],
        kernel: Float[Tensor, "maps channels 3 3"],
        scale: Scale,
    ) -> None:
        self._images, self._scale = arrays(images), arrays(tuple(scale))
        self._kernel = arrays(kernel).reshape(len(kernel), -1)
        self._width, self._pixels = images.shape[3], images.shape[2] * images.shape[3]

    def forward(self, eps: float) -> Float[Tensor, "batch maps rows columns"]:
        """What was pooled."""
        pooled, self._passes = self._pooled(), self._per_map(self._pixels, dtype=np.bool_)
        self._stats = self._per_map(), self._per_map()
        self._spread(self._forward, eps, pooled)
        return torch.from_numpy(pooled)

    def _forward(self, share: slice, eps: float, pooled: Array) -> None:
        maps = len(self._kernel)
        for part, memory in self._a_few(share, maps):
            np.matmul(self._kernel, memory[:, maps:-1], out=memory[:, :maps])
            own = pooled[part], self._passes[part], _of(self._stats, part)
            _activate(memory, self._width, self._scale, eps, *own)

    def gradient(self, of_pooled: Tensor, _: bool) -> tuple[None, Tensor, Scale]:
        """Of the kernel, scale and shift."""
        self._of_pooled, (images, count) = arrays(of_pooled), (len(self._images), self._kernel.shape[1])
        self._moments = np.empty((images, count)), np.empty((images, count, count))
        self._passed, self._seen = (self._per_map(count), self._per_map()), self._per_map(count)
        found = self._new_found()
        self._spread(self._gradient, *found)
        return None, *self._summed(*found)

    def _gradient(self, share: slice, of_kernel: Array, of_scale: Arrays) -> None:
        for part, memory in self._a_few(share, len(self._kernel)):
            _moments(memory, len(self._kernel), *_of(self._moments, part))
            self._pass_back(self._of_pooled, part, memory, self._passed)
        (sums, products), seen = _of(self._moments, share), self._seen[share]
        seen[:] = self._kernel.astype(np.float64) @ products
        known = self._scale[0], _of(self._stats, share), sums, self._pixels, _of(self._passed, share), seen
        _found(self._kernel, *known, of_kernel[share], _of(of_scale, share))

    @property
    def kept_bytes(self) -> int:
        """Of images, what passes, and what was summed up."""
        kept = self._images, self._passes, self._of_pooled, *self._moments, *self._passed, self._seen
        return sum(one.nbytes for one in kept)

    def move(self, _: Tensor | None, dot_kernel: Tensor, dot_scale: Scale) -> Float[Tensor, "batch maps rows columns"]:
        """How what was pooled moves, as kernel, scale and shift do."""
        self._dots = arrays(dot_kernel).reshape(self._kernel.shape), arrays(tuple(dot_scale))
        pooled, self._means = self._pooled(), (self._per_map(), self._per_map())
        self._spread(self._move, pooled)
        return torch.from_numpy(pooled)

    def _move(self, share: slice, pooled: Array) -> None:
        (dot, dot_scale), seen, maps = self._dots, self._seen[share], len(self._kernel)
        along = np.empty_like(seen), np.empty(seen.shape[:2], seen.dtype)
        known = _of(self._stats, share), self._moments[0][share], self._pixels, seen, _of(self._means, share)
        _moved((self._kernel, dot), self._scale[0], dot_scale, *known, *along)
        for part, memory in self._a_few(share, maps):
            kernel, level = _of(along, slice(part.start - share.start, part.stop - share.start))
            np.matmul(kernel, memory[:, maps:-1], out=memory[:, :maps])
            _pool_passed(memory, self._width, level, self._passes[part], pooled[part])

    def gradient_moved(self, dot_of_pooled: Tensor, _: bool) -> tuple[Tensor, Tensor, Scale]:
        """Of the images, what ⟨gradient, direction⟩ has; how what `gradient` gives moves."""
        of_images, found = np.empty_like(self._images), self._new_found()
        dot_passed = self._per_map(self._kernel.shape[1]), self._per_map()
        self._spread(self._gradient_moved, arrays(dot_of_pooled), dot_passed, *found, of_images)
        return torch.from_numpy(of_images), *self._summed(*found)

    def _gradient_moved(
        self, share: slice, dot_grad: Array, dot_passed: Arrays, of_kernel: Array, of_scale: Arrays, of_images: Array
    ) -> None:
        (maps, count), (dot, dot_scale) = self._kernel.shape, self._dots
        for part, memory in self._a_few(share, maps):
            self._pass_back(dot_grad, part, memory, dot_passed)
        sums, products = _of(self._moments, share)
        known = _of(self._stats, share), sums, self._pixels, _of(self._passed, share), _of(dot_passed, share)
        seen = self._seen[share], (dot.astype(np.float64) @ products).astype(dot.dtype)
        ways = np.empty((len(sums), 2 * maps + count + 1, count), dot.dtype)
        of_maps = np.empty((len(sums), 2 * maps, count), dot.dtype)
        kernels, into = (self._kernel, dot), (of_kernel[share], _of(of_scale, share), ways, of_maps)
        _found_moved(kernels, (self._scale[0], dot_scale[0]), *known, seen, _of(self._means, share), *into)
        ways[:, 2 * maps : -1] = of_maps.transpose(0, 2, 1) @ np.concatenate(kernels)
        for part, memory in self._a_few(share, 2 * maps):
            unused = np.empty((len(memory), maps), dot.dtype)
            _pass_back(dot_grad[part], self._width, self._passes[part], memory, 0, unused)
            _pass_back(self._of_pooled[part], self._width, self._passes[part], memory, maps, unused)
            own = ways[part.start - share.start : part.stop - share.start]
            _put_back(np.matmul(own.transpose(0, 2, 1), memory), of_images[part])

    def _pass_back(self, grad: Array, part: slice, memory: Array, passed: Arrays) -> None:
        """Of some images what passes back, summed over pixels: times what they see, and as it is."""
        (around, total), maps = passed, len(self._kernel)
        _pass_back(grad[part], self._width, self._passes[part], memory, 0, total[part])
        np.matmul(memory[:, :maps], memory[:, maps:-1].transpose(0, 2, 1), out=around[part])

    def _pooled(self) -> Array:
        _, _, height, width = self._images.shape
        return self._per_map(height // 2, width // 2)

    def _per_map(self, *size: int, dtype: Any = None) -> Array:
        return np.empty((len(self._images), len(self._kernel), *size), dtype or self._images.dtype)

    def _new_found(self) -> tuple[Array, Arrays]:
        """Gradients of kernel, scale and shift, of each image by itself: no sum depends on the number of threads."""
        return self._per_map(self._kernel.shape[1]), (self._per_map(), self._per_map())

    def _summed(self, of_kernel: Array, of_scale: Arrays) -> tuple[Tensor, Scale]:
        weight, bias = (torch.from_numpy(each).sum(0) for each in of_scale)
        kernel = torch.from_numpy(of_kernel).sum(0)
        return kernel.view(len(kernel), -1, 3, 3), Scale(weight, bias)

    def _spread(self, work: Callable[..., None], *given: Any) -> None:
        """Over all images, each thread a share of them."""
        numbers = len(self._images) * len(self._kernel) * self._pixels
        spread(lambda first, stop: work(slice(first, stop), *given), len(self._images), numbers)

    def _a_few(self, share: slice, maps: int) -> Iterator[tuple[slice, Array]]:
        """Some images at a time: which, and (images, maps + 9 · channels + 1, pixels) with what is seen, and 1."""
        most = min(share.stop - share.start, max(1, AT_ONCE // (maps * self._pixels)))
        memory = np.empty((most, maps + self._kernel.shape[1] + 1, self._pixels), self._images.dtype)
        memory[:, -1] = 1
        for start in range(share.start, share.stop, most):
            part = slice(start, min(start + most, share.stop))
            _look_around(self._images[part], memory, maps)
            yield part, memory[: part.stop - start]


def _of(values: Any, part: slice) -> Any:
    """Those of some images."""
    return tuple([_of(one, part) for one in values]) if isinstance(values, tuple) else values[part]


def load_loops(dtype: torch.dtype) -> None:
    """Compiles or loads them all now, by an image of nothing: see `compiled_passes`."""
    image, kernel, of_pooled = (torch.zeros(1, 1, side, side, dtype=dtype) for side in (2, 3, 1))
    scale = Scale(*torch.zeros(2, 1, dtype=dtype))
    block = FirstBlock(image, kernel, scale)
    block.forward(1.0)
    block.gradient(of_pooled, True)
    block.move(None, kernel, scale)
    block.gradient_moved(of_pooled, True)
