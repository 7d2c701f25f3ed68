"""Tiles of maps, and 3×3 kernels, at the points of Winograd's F(4×4, 3×3), and back: compiled loops.

Each transform is of six numbers in a row (of results four, of kernels three), for both directions, with all maps of an
image side by side so that a processor's wide registers are full. What goes back is the adjoint of what goes there.
Loops over tiles and rows are inside of a transform: called for each, it took twice as long. Importing this needs
numba.

Source: Lavin & Gray 2016 (Fast algorithms for convolutional neural networks). The points are 0, ±5/8, ±3/2 and infinity
rather than their 0, ±1, ±2 and infinity: in float32 that halves what rounding does, to 0.9e-6 of the results of 128
maps, where a direct sum has 0.2e-6.
"""

from functools import cache

import numpy as np
import torch

from ptm_ray.core.nets.compiling import Array, compiled
from ptm_ray.core.types import Float, Tensor

#: Pixels of a tile on each side; the points are for both directions of the six that its results depend on.
TILE, POINTS = 4, 36
#: So many maps are read side by side, and numbers of maps have to be multiples of it.
LANES = 16
#: The points are 0, ±_A, ±_B and infinity; these are exact in any precision, and so are the sums and products below.
_A, _B = 5 / 8, 3 / 2
_A2, _B2 = _A * _A, _B * _B
_PRODUCT, _SUM = _A2 * _B2, _A2 + _B2


@compiled
def _of_input(x: Array, v: Array) -> None:
    """Six pixels of a row at the six points, for all tiles of all rows: (rows, pixels, n) as (tiles, rows, 6, n)."""
    number = x.dtype.type
    a, b, a2, b2, product, total = number(_A), number(_B), number(_A2), number(_B2), number(_PRODUCT), number(_SUM)
    for j, k in np.ndindex(v.shape[:2]):
        pixels, values = x[k], v[j, k]
        for e in range(x.shape[2]):
            x0, x1, x2 = pixels[4 * j, e], pixels[4 * j + 1, e], pixels[4 * j + 2, e]
            x3, x4, x5 = pixels[4 * j + 3, e], pixels[4 * j + 4, e], pixels[4 * j + 5, e]
            even_a, odd_a = x4 - b2 * x2, a * (x3 - b2 * x1)
            even_b, odd_b = x4 - a2 * x2, b * (x3 - a2 * x1)
            values[0, e] = product * x0 - total * x2 + x4
            values[1, e] = even_a + odd_a
            values[2, e] = even_a - odd_a
            values[3, e] = even_b + odd_b
            values[4, e] = even_b - odd_b
            values[5, e] = product * x1 - total * x3 + x5


@compiled
def _to_input(v: Array, x: Array) -> None:
    """The adjoint, added to what is there."""
    number = x.dtype.type
    a, b, a2, b2, product, total = number(_A), number(_B), number(_A2), number(_B2), number(_PRODUCT), number(_SUM)
    for j, k in np.ndindex(v.shape[:2]):
        pixels, values = x[k], v[j, k]
        for e in range(x.shape[2]):
            v0, v1, v2, v3, v4, v5 = values[0, e], values[1, e], values[2, e], values[3, e], values[4, e], values[5, e]
            even_a, odd_a = v1 + v2, a * (v1 - v2)
            even_b, odd_b = v3 + v4, b * (v3 - v4)
            pixels[4 * j, e] += product * v0
            pixels[4 * j + 1, e] += product * v5 - b2 * odd_a - a2 * odd_b
            pixels[4 * j + 2, e] -= total * v0 + b2 * even_a + a2 * even_b
            pixels[4 * j + 3, e] += odd_a + odd_b - total * v5
            pixels[4 * j + 4, e] += v0 + even_a + even_b
            pixels[4 * j + 5, e] += v5


@compiled
def _of_results(y: Array, v: Array) -> None:
    """Four results at the six points: the adjoint of `_to_results`."""
    number = y.dtype.type
    a, b, a2, b2 = number(_A), number(_B), number(_A2), number(_B2)
    for j, k in np.ndindex(v.shape[:2]):
        pixels, values = y[k], v[j, k]
        for e in range(y.shape[2]):
            y0, y1, y2, y3 = pixels[4 * j, e], pixels[4 * j + 1, e], pixels[4 * j + 2, e], pixels[4 * j + 3, e]
            even_a, odd_a = y0 + a2 * y2, a * (y1 + a2 * y3)
            even_b, odd_b = y0 + b2 * y2, b * (y1 + b2 * y3)
            values[0, e] = y0
            values[1, e] = even_a + odd_a
            values[2, e] = even_a - odd_a
            values[3, e] = even_b + odd_b
            values[4, e] = even_b - odd_b
            values[5, e] = y3


@compiled
def _to_results(v: Array, y: Array) -> None:
    """Four results, of products at the six points."""
    number = y.dtype.type
    a, b, a2, b2 = number(_A), number(_B), number(_A2), number(_B2)
    for j, k in np.ndindex(v.shape[:2]):
        pixels, values = y[k], v[j, k]
        for e in range(y.shape[2]):
            v0, v1, v2, v3, v4, v5 = values[0, e], values[1, e], values[2, e], values[3, e], values[4, e], values[5, e]
            even_a, odd_a = v1 + v2, a * (v1 - v2)
            even_b, odd_b = v3 + v4, b * (v3 - v4)
            pixels[4 * j, e] = v0 + even_a + even_b
            pixels[4 * j + 1, e] = odd_a + odd_b
            pixels[4 * j + 2, e] = a2 * even_a + b2 * even_b
            pixels[4 * j + 3, e] = a2 * odd_a + b2 * odd_b + v5


@compiled
def _load(image: Array, pixels: Array, margin: int) -> None:
    """An image's maps, (maps, height, width), side by side: (margin + height + …, margin + width + …, maps)."""
    maps, height, width = image.shape
    for first in range(0, maps, LANES):
        for i in range(height):
            for j in range(width):
                place = pixels[margin + i, margin + j, first : first + LANES]
                for lane in range(LANES):
                    place[lane] = image[first + lane, i, j]


@compiled
def _store(pixels: Array, image: Array, margin: int) -> None:
    """And back, without the margin and what follows."""
    maps, height, width = image.shape
    for first in range(0, maps, LANES):
        for i in range(height):
            for j in range(width):
                place = pixels[margin + i, margin + j, first : first + LANES]
                for lane in range(LANES):
                    image[first + lane, i, j] = place[lane]


@compiled
def _there(pixels: Array, values: Array, side: int) -> None:
    if side == 6:
        _of_input(pixels, values)
    else:
        _of_results(pixels, values)


@compiled
def _back(values: Array, pixels: Array, side: int) -> None:
    if side == 6:
        _to_input(values, pixels)
    else:
        _to_results(values, pixels)


@compiled
def _room(images: Array, side: int) -> tuple[int, int, int, Array, Array, Array]:
    """Rows and columns of tiles, the margin around them, and memory: an image with it, six lines, these as one row."""
    _, maps, height, width = images.shape
    rows, columns, margin = (height + 3) // 4, (width + 3) // 4, (side - 4) // 2
    wide = 4 * columns + 2 * margin
    pixels, strip = np.zeros((4 * rows + 2 * margin, wide, maps), images.dtype), np.empty((6, wide, maps), images.dtype)
    return rows, columns, margin, pixels, strip, strip.reshape(1, 1, 6, wide * maps)


@compiled
def _at_points(images: Array, values: Array, side: int) -> None:
    """Maps of (images, maps, height, width) as values of (tiles, 6, 6, maps).

    `side`: pixels of a tile, 6 of what a convolution is given (where tiles overlap), 4 of what it gives.
    """
    rows, columns, margin, pixels, strip, down = _room(images, side)
    for image in range(len(images)):
        _load(images[image], pixels, margin)
        for i in range(rows):
            first = (image * rows + i) * columns
            # Down all columns of a row of tiles, then along its lines.
            _there(pixels[4 * i : 4 * i + side].reshape(1, side, down.shape[3]), down, side)
            _there(strip, values[first : first + columns], side)


@compiled
def _from_points(values: Array, images: Array, side: int) -> None:
    """The adjoint, of the same shapes."""
    rows, columns, margin, pixels, strip, down = _room(images, side)
    for image in range(len(images)):
        # Where tiles overlap, they are added.
        if margin:
            pixels[:] = 0
        for i in range(rows):
            if margin:
                strip[:] = 0
            first = (image * rows + i) * columns
            _back(values[first : first + columns], strip, side)
            _back(down, pixels[4 * i : 4 * i + side].reshape(1, side, down.shape[3]), side)
        _store(pixels, images[image], margin)


@cache
def _of_kernels(dtype: torch.dtype) -> Float[Tensor, "points 9"]:
    """What evaluates a kernel at the points: three numbers in a row at the six points, for both directions."""
    norm_a, norm_b = 2 * _A2 * (_A2 - _B2), 2 * _B2 * (_B2 - _A2)
    rows = [
        [1 / _PRODUCT, 0, 0],
        [1 / norm_a, _A / norm_a, _A2 / norm_a],
        [1 / norm_a, -_A / norm_a, _A2 / norm_a],
        [1 / norm_b, _B / norm_b, _B2 / norm_b],
        [1 / norm_b, -_B / norm_b, _B2 / norm_b],
        [0, 0, 1],
    ]
    row = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(row, row).to(dtype)


def kernel_at_points(kernel: Float[Tensor, "left right 3 3"]) -> Array:
    """(points, left, right)"""
    at_points = _of_kernels(kernel.dtype) @ kernel.reshape(-1, 9).t()
    return at_points.view(-1, *kernel.shape[:2]).numpy()


def kernel_from_points(values: Float[Tensor, "points results maps"]) -> Float[Tensor, "results maps 3 3"]:
    """The adjoint."""
    kernels = _of_kernels(values.dtype).t() @ values.flatten(1)
    return kernels.t().reshape(*values.shape[1:], 3, 3)


def tiles_of(height: int, width: int) -> int:
    """Tiles of a map."""
    return -(-height // TILE) * -(-width // TILE)


class AtPoints:
    """Memory for some images' maps at the points, used again and again: (images · tiles, 6, 6, maps)."""

    def __init__(self, images: int, like: Float[Tensor, "batch maps height width"]) -> None:
        self._tiles = tiles_of(*like.shape[2:])
        self._memory = like.new_empty(images * self._tiles, 6, 6, like.shape[1]).numpy()

    def of(self, images: int) -> Array:
        """Of the first so many images, (points, images · tiles, maps): a view."""
        whole = self._memory[: images * self._tiles]
        return whole.reshape(len(whole), POINTS, whole.shape[3]).transpose(1, 0, 2)

    def of_input(self, maps: Array) -> Array:
        """What a convolution is given, (images, maps, height, width), at the points."""
        _at_points(maps, self._memory, 6)
        return self.of(len(maps))

    def of_results(self, maps: Array) -> Array:
        """The gradient of what it gives, at the points."""
        _at_points(maps, self._memory, 4)
        return self.of(len(maps))

    def to_input(self, maps: Array) -> None:
        """The adjoint of `of_input`, into maps."""
        _from_points(self._memory, maps, 6)

    def to_results(self, maps: Array) -> None:
        """The adjoint of `of_results`, into maps."""
        _from_points(self._memory, maps, 4)


@cache
def load_loops(dtype: torch.dtype) -> None:
    """Compiles or loads them all now, by an image of nothing: see `compiled_passes`."""
    maps = torch.zeros(1, LANES, TILE, TILE, dtype=dtype)
    memory, image = AtPoints(1, maps), maps.numpy()
    memory.of_input(image)
    memory.of_results(image)
    memory.to_input(image)
    memory.to_results(image)
