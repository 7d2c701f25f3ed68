"""What `first_block` does pixel by pixel, and map by map with what was summed up: compiled loops. Needs numba.

w is what lies around a pixel: nine numbers of every channel, in rows of `memory`, (images, rows, pixels), beside maps.
"""

import numpy as np

from ptm_ray.core.nets.compiling import Array, Arrays, compiled

#: Pixels that are summed over in the images' own precision, before such sums are added in double precision.
PART = 256


@compiled
def look_around(images: Array, memory: Array, at: int) -> None:
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
def put_back(around: Array, images: Array) -> None:
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
def moments(memory: Array, at: int, sums: Array, products: Array) -> None:
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
def activate(memory: Array, width: int, scale: Arrays, eps: float, pooled: Array, passes: Array, stats: Arrays) -> None:
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
def pool_passed(memory: Array, width: int, level: Array, passes: Array, pooled: Array) -> None:
    """Of maps, and of a number for each added to it, the means of 2×2 blocks of what passes."""
    zero = memory.dtype.type(0)
    for i, m in np.ndindex(passes.shape[:2]):
        given, passed, more = memory[i, m], passes[i, m], memory.dtype.type(level[i, m])
        for p in range(len(given)):
            given[p] = given[p] + more if passed[p] else zero
        _pool(given, width, pooled[i, m])


@compiled
def pass_back(grad: Array, width: int, passes: Array, memory: Array, at: int, total: Array) -> None:
    """The adjoint: gradients of pooled maps as those of maps, from row `at` on; and their sums."""
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
def found(
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
def moved(
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
def found_moved(
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
    """How what `found` finds moves: see `passes.gradient_moved`. And what leads to what the pixels see.

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
