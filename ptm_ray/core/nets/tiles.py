"""Tiles of maps, and 3×3 kernels, at the points of Winograd's F(4×4, 3×3), and back: compiled loops.

Each transform is of six numbers in a row (of results four, of kernels three), first for all rows of a tile and then for
all columns, with all maps of an image side by side so that a processor's wide registers are full. What goes back is the
adjoint of what goes there. Importing this needs numba.

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
    """Six pixels in a row at the six points, for all columns of (6, n)."""
    number = x.dtype.type
    a, b, a2, b2, product, total = number(_A), number(_B), number(_A2), number(_B2), number(_PRODUCT), number(_SUM)
    for e in range(x.shape[1]):
        even_a, odd_a = x[4, e] - b2 * x[2, e], a * (x[3, e] - b2 * x[1, e])
        even_b, odd_b = x[4, e] - a2 * x[2, e], b * (x[3, e] - a2 * x[1, e])
        v[0, e] = product * x[0, e] - total * x[2, e] + x[4, e]
        v[1, e] = even_a + odd_a
        v[2, e] = even_a - odd_a
        v[3, e] = even_b + odd_b
        v[4, e] = even_b - odd_b
        v[5, e] = product * x[1, e] - total * x[3, e] + x[5, e]


@compiled
def _to_input(v: Array, x: Array) -> None:
    """The adjoint, added to what is there."""
    number = x.dtype.type
    a, b, a2, b2, product, total = number(_A), number(_B), number(_A2), number(_B2), number(_PRODUCT), number(_SUM)
    for e in range(x.shape[1]):
        even_a, odd_a = v[1, e] + v[2, e], a * (v[1, e] - v[2, e])
        even_b, odd_b = v[3, e] + v[4, e], b * (v[3, e] - v[4, e])
        x[0, e] += product * v[0, e]
        x[1, e] += product * v[5, e] - b2 * odd_a - a2 * odd_b
        x[2, e] -= total * v[0, e] + b2 * even_a + a2 * even_b
        x[3, e] += odd_a + odd_b - total * v[5, e]
        x[4, e] += v[0, e] + even_a + even_b
        x[5, e] += v[5, e]


@compiled
def _of_results(y: Array, v: Array) -> None:
    """Four results in a row at the six points: the adjoint of `_to_results`."""
    number = y.dtype.type
    a, b, a2, b2 = number(_A), number(_B), number(_A2), number(_B2)
    for e in range(y.shape[1]):
        even_a, odd_a = y[0, e] + a2 * y[2, e], a * (y[1, e] + a2 * y[3, e])
        even_b, odd_b = y[0, e] + b2 * y[2, e], b * (y[1, e] + b2 * y[3, e])
        v[0, e] = y[0, e]
        v[1, e] = even_a + odd_a
        v[2, e] = even_a - odd_a
        v[3, e] = even_b + odd_b
        v[4, e] = even_b - odd_b
        v[5, e] = y[3, e]


@compiled
def _to_results(v: Array, y: Array) -> None:
    """Four results in a row, of products at the six points."""
    number = y.dtype.type
    a, b, a2, b2 = number(_A), number(_B), number(_A2), number(_B2)
    for e in range(y.shape[1]):
        even_a, odd_a = v[1, e] + v[2, e], a * (v[1, e] - v[2, e])
        even_b, odd_b = v[3, e] + v[4, e], b * (v[3, e] - v[4, e])
        y[0, e] = v[0, e] + even_a + even_b
        y[1, e] = odd_a + odd_b
        y[2, e] = a2 * even_a + b2 * even_b
        y[3, e] = a2 * odd_a + b2 * odd_b + v[5, e]


@compiled
def _load(image: Array, lines: Array, margin: int) -> None:
    """An image's maps, (maps, height, width), side by side: (margin + height + …, (margin + width + …) · maps)."""
    maps, height, width = image.shape
    for first in range(0, maps, LANES):
        for i in range(height):
            line, pixels = lines[margin + i], image[first : first + LANES, i]
            for j in range(width):
                at = (margin + j) * maps + first
                place = line[at : at + LANES]
                for lane in range(LANES):
                    place[lane] = pixels[lane, j]


@compiled
def _store(lines: Array, image: Array, margin: int) -> None:
    """And back, without the margin and what follows."""
    maps, height, width = image.shape
    for channel in range(maps):
        for i in range(height):
            line, pixels = lines[margin + i], image[channel, i]
            for j in range(width):
                pixels[j] = line[(margin + j) * maps + channel]


@compiled
def _there(pixels: Array, v: Array) -> None:
    if len(pixels) == 6:
        _of_input(pixels, v)
    else:
        _of_results(pixels, v)


@compiled
def _back(v: Array, pixels: Array) -> None:
    if len(pixels) == 6:
        _to_input(v, pixels)
    else:
        _to_results(v, pixels)


@compiled
def _at_points(images: Array, values: Array, side: int) -> None:
    """Maps of (images, maps, height, width) as values of (tiles, points, maps).

    `side`: pixels of a tile, 6 of what a convolution is given (where tiles overlap), 4 of what it gives.
    """
    _, maps, height, width = images.shape
    rows, columns, margin = (height + 3) // 4, (width + 3) // 4, (side - 4) // 2
    lines = np.zeros((4 * rows + 2 * margin, (4 * columns + 2 * margin) * maps), images.dtype)
    strip = np.empty((6, lines.shape[1]), images.dtype)
    for image in range(len(images)):
        _load(images[image], lines, margin)
        for i in range(rows):
            _there(lines[4 * i : 4 * i + side], strip)
            for j in range(columns):
                tile, span = values[(image * rows + i) * columns + j], slice(4 * j * maps, (4 * j + side) * maps)
                for k in range(6):
                    _there(strip[k, span].reshape(side, maps), tile[6 * k : 6 * k + 6])


@compiled
def _from_points(values: Array, images: Array, side: int) -> None:
    """The adjoint, of the same shapes."""
    _, maps, height, width = images.shape
    rows, columns, margin = (height + 3) // 4, (width + 3) // 4, (side - 4) // 2
    lines = np.empty((4 * rows + 2 * margin, (4 * columns + 2 * margin) * maps), images.dtype)
    strip = np.empty((6, lines.shape[1]), images.dtype)
    for image in range(len(images)):
        # Where tiles overlap, they are added.
        if margin:
            lines[:] = 0
        for i in range(rows):
            if margin:
                strip[:] = 0
            for j in range(columns):
                tile, span = values[(image * rows + i) * columns + j], slice(4 * j * maps, (4 * j + side) * maps)
                for k in range(6):
                    _back(tile[6 * k : 6 * k + 6], strip[k, span].reshape(side, maps))
            _back(strip, lines[4 * i : 4 * i + side])
        _store(lines, images[image], margin)


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
    """Memory for some images' maps at the points, used again and again: (images · tiles, points, maps)."""

    def __init__(self, images: int, like: Float[Tensor, "batch maps height width"]) -> None:
        self._tiles = tiles_of(*like.shape[2:])
        self._memory = like.new_empty(images * self._tiles, POINTS, like.shape[1]).numpy()

    def of(self, images: int) -> Array:
        """Of the first so many images, (points, images · tiles, maps): a view."""
        return self._memory[: images * self._tiles].transpose(1, 0, 2)

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
