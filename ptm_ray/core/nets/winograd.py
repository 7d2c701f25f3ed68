"""3×3 convolutions of many maps by Winograd's minimal filtering, F(4×4, 3×3), and their gradients the same way.

Results are cut into tiles of 4×4, which depend on 6×6 pixels each. Tiles and kernels are evaluated at 36 points,
products of the same point are summed over maps as a matrix product, and what comes out is brought back to pixels: 36
multiplications for what takes 144 directly. It is the same sum, so that its derivatives are the same three transforms
and their adjoints: with V of the input, U of the kernel and W of the results' gradient, all at the points,

    results = W*(V · U)        gradient of the input = V*(W · U)        gradient of the kernel = U*(V · W)

Source: Lavin & Gray 2016 (Fast algorithms for convolutional neural networks); adjoints: own design. The points are 0,
±5/8, ±3/2 and infinity rather than their 0, ±1, ±2 and infinity: in float32 that halves what rounding does, to 0.9e-6
of the results of 128 maps, where a direct sum has 0.2e-6.

Importing this needs numba.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ptm_ray.core.nets.compiling import Array, compiled, spread
from ptm_ray.core.nets.convolutions import Convolution, Term
from ptm_ray.core.types import Float, Tensor

#: A loop over images from one to another, between their maps and values at the points.
Loop = Callable[[int, int, Array, Array], None]
#: Pixels of a tile on each side, of results and of what they depend on.
TILE, SEEN = 4, 6
POINTS = SEEN * SEEN
#: So many maps are read side by side, and numbers of maps have to be multiples of it.
LANES = 16
#: It is faster than the direct way from so many maps and tiles on.
MAPS, TILES = 64, 64
#: Numbers at the points at one time, of input or results: more would leave the cache before they are multiplied.
CHUNK = 2**18
#: Multiplications of a small matrix product in OpenBLAS's sense (numpy's, for processors with AVX-512).
SMALL = 100**3
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
def _input_at_points(first: int, stop: int, x: Array, values: Array) -> None:
    """V of images from first to stop: x is (batch, maps, height, width), values (tiles, points, maps)."""
    _, maps, height, width = x.shape
    rows, columns = (height + 3) // 4, (width + 3) // 4
    lines = np.zeros((4 * rows + 2, (4 * columns + 2) * maps), x.dtype)
    strip = np.empty((6, lines.shape[1]), x.dtype)
    for image in range(first, stop):
        _load(x[image], lines, 1)
        for i in range(rows):
            _of_input(lines[4 * i : 4 * i + 6], strip)
            for j in range(columns):
                tile, span = values[(image * rows + i) * columns + j], slice(4 * j * maps, (4 * j + 6) * maps)
                for k in range(6):
                    _of_input(strip[k, span].reshape(6, maps), tile[6 * k : 6 * k + 6])


@compiled
def _input_from_points(first: int, stop: int, values: Array, x: Array) -> None:
    """V*, of the same shapes."""
    _, maps, height, width = x.shape
    rows, columns = (height + 3) // 4, (width + 3) // 4
    lines = np.empty((4 * rows + 2, (4 * columns + 2) * maps), x.dtype)
    strip = np.empty((6, lines.shape[1]), x.dtype)
    for image in range(first, stop):
        lines[:] = 0
        for i in range(rows):
            strip[:] = 0
            for j in range(columns):
                tile, span = values[(image * rows + i) * columns + j], slice(4 * j * maps, (4 * j + 6) * maps)
                for k in range(6):
                    _to_input(tile[6 * k : 6 * k + 6], strip[k, span].reshape(6, maps))
            _to_input(strip, lines[4 * i : 4 * i + 6])
        _store(lines, x[image], 1)


@compiled
def _results_at_points(first: int, stop: int, y: Array, values: Array) -> None:
    """W, shapes as for V."""
    _, maps, height, width = y.shape
    rows, columns = (height + 3) // 4, (width + 3) // 4
    lines = np.zeros((4 * rows, 4 * columns * maps), y.dtype)
    strip = np.empty((6, lines.shape[1]), y.dtype)
    for image in range(first, stop):
        _load(y[image], lines, 0)
        for i in range(rows):
            _of_results(lines[4 * i : 4 * i + 4], strip)
            for j in range(columns):
                tile, span = values[(image * rows + i) * columns + j], slice(4 * j * maps, (4 * j + 4) * maps)
                for k in range(6):
                    _of_results(strip[k, span].reshape(4, maps), tile[6 * k : 6 * k + 6])


@compiled
def _results_from_points(first: int, stop: int, values: Array, y: Array) -> None:
    """W*, of the same shapes."""
    _, maps, height, width = y.shape
    rows, columns = (height + 3) // 4, (width + 3) // 4
    lines = np.empty((4 * rows, 4 * columns * maps), y.dtype)
    strip = np.empty((6, lines.shape[1]), y.dtype)
    for image in range(first, stop):
        for i in range(rows):
            for j in range(columns):
                tile, span = values[(image * rows + i) * columns + j], slice(4 * j * maps, (4 * j + 4) * maps)
                for k in range(6):
                    _to_results(tile[6 * k : 6 * k + 6], strip[k, span].reshape(4, maps))
            _to_results(strip, lines[4 * i : 4 * i + 4])
        _store(lines, y[image], 0)


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


@cache
def _load_loops(dtype: torch.dtype) -> None:
    """Compiles or loads them all now, by an image of nothing: see `compiled_passes`."""
    maps = torch.zeros(1, LANES, TILE, TILE, dtype=dtype)
    for there, back in ((_input_at_points, _input_from_points), (_results_at_points, _results_from_points)):
        memory = _AtPoints(1, maps)
        memory.filled(there, maps.numpy())
        memory.emptied(back, maps.numpy())


def _kernel_at_points(kernel: Float[Tensor, "left right 3 3"]) -> Array:
    """U, (points, left, right)."""
    at_points = _of_kernels(kernel.dtype) @ kernel.reshape(-1, 9).t()
    return at_points.view(-1, *kernel.shape[:2]).numpy()


def _kernel_from_points(values: Float[Tensor, "points results maps"]) -> Float[Tensor, "results maps 3 3"]:
    """U*."""
    kernels = _of_kernels(values.dtype).t() @ values.flatten(1)
    return kernels.t().reshape(*values.shape[1:], 3, 3)


def tiles_of(height: int, width: int) -> int:
    """Tiles of a map."""
    return -(-height // TILE) * -(-width // TILE)


class _AtPoints:
    """Memory for maps of some images at the points, filled again and again: (images · tiles, points, maps)."""

    def __init__(self, images: int, like: Float[Tensor, "batch maps height width"]) -> None:
        self._tiles = tiles_of(*like.shape[2:])
        self._memory = like.new_empty(images * self._tiles, POINTS, like.shape[1]).numpy()

    def of(self, images: int) -> Array:
        """Of the first so many images: (points, images · tiles, maps), a view."""
        return self._memory[: images * self._tiles].transpose(1, 0, 2)

    def filled(self, loop: Loop, maps: Array) -> Array:
        """V or W of maps, (images, maps, height, width)."""
        loop(0, len(maps), maps, self._memory)
        return self.of(len(maps))

    def emptied(self, loop: Loop, maps: Array) -> None:
        """V* or W*, into maps."""
        loop(0, len(maps), self._memory, maps)


def _product(left: Array, right: Array, out: Array, memory: Array | None) -> None:
    """Of (points, tiles, n) and (points, n, m), for each point; with memory for as much again, added to what is there.

    The tiles are cut so that each product is a small one in OpenBLAS's sense, which it computes without packing its
    factors: 1.4 times as fast.
    """
    most = max(1, SMALL // (right.shape[1] * right.shape[2]))
    for first in range(0, left.shape[1], most):
        part = slice(first, first + most)
        if memory is None:
            np.matmul(left[:, part], right, out=out[:, part])
        else:
            np.matmul(left[:, part], right, out=memory[:, part])
            np.add(out[:, part], memory[:, part], out=out[:, part])


def _add_products(left: Array, right: Array, total: Array, memory: Array) -> None:
    """Adds those of (points, tiles, n) and (points, tiles, m), summed over tiles, to (points, n, m)."""
    most = max(1, SMALL // (left.shape[2] * right.shape[2]))
    for first in range(0, left.shape[1], most):
        part = slice(first, first + most)
        np.matmul(left[:, part].transpose(0, 2, 1), right[:, part], out=memory)
        np.add(total, memory, out=total)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy()


class _Parts:
    """Which images are worked on at a time, and memory for their maps at the points, of one thread."""

    def __init__(self, x: Float[Tensor, "batch maps height width"], y: Float[Tensor, "batch results height width"]):
        each = tiles_of(*x.shape[2:]) * POINTS * max(x.shape[1], y.shape[1])
        self._most = min(len(x), max(1, CHUNK // each))
        self._x, self._y = x, y

    def of_input(self) -> _AtPoints:
        return _AtPoints(self._most, self._x)

    def of_results(self) -> _AtPoints:
        return _AtPoints(self._most, self._y)

    def between(self, first: int, stop: int) -> Iterator[slice]:
        """All images from one to another, so many at a time."""
        for start in range(first, stop, self._most):
            yield slice(start, min(start + self._most, stop))


class WinogradConvolution(Convolution):
    """The same sums as `Convolution`'s, of numbers of maps that are multiples of LANES."""

    def __init__(self) -> None:
        super().__init__(half=False)

    def pays(self, maps: Float[Tensor, "batch maps height width"], kernel: Float[Tensor, "results maps 3 3"]) -> bool:
        """Whether it can do these, and is faster."""
        results, given = kernel.shape[:2]
        if results % LANES or given % LANES:
            return False
        return min(results, given) >= MAPS and len(maps) * tiles_of(*maps.shape[2:]) >= TILES

    def results(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        (x, kernel), *_ = pairs
        found = x.new_empty(len(x), len(kernel), *x.shape[2:])
        _load_loops(x.dtype)
        given = [(_array(maps), _kernel_at_points(one.transpose(0, 1))) for maps, one in pairs]
        into, parts = found.numpy(), _Parts(x, found)

        def work(first: int, stop: int) -> None:
            values, products, more = parts.of_input(), parts.of_results(), parts.of_results()
            for images in parts.between(first, stop):
                count = images.stop - images.start
                for number, (maps, at_points) in enumerate(given):
                    left = values.filled(_input_at_points, maps[images])
                    _product(left, at_points, products.of(count), more.of(count) if number else None)
                products.emptied(_results_from_points, into[images])

        spread(work, len(x), found.numel())
        return found

    def back(self, terms: Sequence[Term], wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        (grad, x, kernel), *_ = terms
        _load_loops(x.dtype)
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        given = [(_array(term.grad), _array(term.x), _kernel_at_points(term.kernel)) for term in terms]
        into, parts = of_x.numpy(), _Parts(x, grad)
        sums: dict[int, Array] = {}

        def work(first: int, stop: int) -> None:
            grads, values, products, more = parts.of_results(), parts.of_input(), parts.of_input(), parts.of_input()
            of_kernel, memory = kernel.new_zeros(2, POINTS, *kernel.shape[:2]).numpy()
            for images in parts.between(first, stop):
                count = images.stop - images.start
                for number, (of_results, maps, at_points) in enumerate(given):
                    left = grads.filled(_results_at_points, of_results[images])
                    if wanted[0]:
                        _product(left, at_points, products.of(count), more.of(count) if number else None)
                    if wanted[1]:
                        _add_products(left, values.filled(_input_at_points, maps[images]), of_kernel, memory)
                if wanted[0]:
                    products.emptied(_input_from_points, into[images])
            sums[first] = of_kernel

        spread(work, len(x), grad.numel())
        of_kernel = torch.from_numpy(sum(sums[first] for first in sorted(sums)))
        return of_x if wanted[0] else None, _kernel_from_points(of_kernel) if wanted[1] else None
