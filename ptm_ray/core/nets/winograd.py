"""3×3 convolutions of many maps by Winograd's minimal filtering, F(4×4, 3×3), and their gradients the same way.

Results are cut into tiles of 4×4, which depend on 6×6 pixels each. Tiles and kernels are evaluated at 36 points,
products of the same point are summed over maps as a matrix product, and what comes out is brought back to pixels: 36
multiplications for what takes 144 directly. It is the same sum, so that its derivatives are the same three transforms
and their adjoints: with V of the input, U of the kernel and W of the results' gradient, all at the points,

    results = W*(V · U)        gradient of the input = V*(W · U)        gradient of the kernel = U*(V · W)

Source: Lavin & Gray 2016; gradients by the adjoints: own design. `tiles` has the transforms. Importing needs numba.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ptm_ray.core.nets.compiling import Array, arrays, spread
from ptm_ray.core.nets.convolutions import Convolution, Term
from ptm_ray.core.nets.tiles import LANES, POINTS, AtPoints, kernel_at_points, kernel_from_points, load_loops, tiles_of
from ptm_ray.core.types import Float, Tensor

#: Faster than the direct way it is of so many maps, and so many tiles for each thread, or one for every fourth map (a
#: kernel's values at the points have to be read for them).
MAPS, TILES, MAPS_A_TILE = 32, 32, 4
#: Numbers at the points at one time, of input or results: more would leave the cache before they are multiplied.
CHUNK = 2**18
#: But so many tiles at the least, lest kernels are read for few of them.
LEAST = 48
#: Multiplications of a small matrix product in OpenBLAS's sense (numpy's, for processors with AVX-512).
SMALL = 100**3


def _cut(tiles: int, each: int) -> Iterator[slice]:
    """All tiles, so many at a time that products of `each` multiplications a tile are small ones, if that is enough.

    OpenBLAS computes small products without packing their factors, 1.4 times as fast.
    """
    most = SMALL // each
    if most < LEAST:
        most = tiles
    for first in range(0, tiles, most):
        yield slice(first, first + most)


def _multiply(left: Array, right: Array, total: Array, memory: Array | None) -> None:
    """Products of (points, tiles, n) and (points, n, m), for each point; with memory, added to what is there."""
    products = total if memory is None else memory
    for part in _cut(left.shape[1], right.shape[1] * right.shape[2]):
        np.matmul(left[:, part], right, out=products[:, part])
    if memory is not None:
        np.add(total, memory, out=total)


def _add_products(left: Array, right: Array, total: Array, memory: Array) -> None:
    """Adds those of (points, tiles, n) and (points, tiles, m), summed over tiles, to (points, n, m)."""
    for part in _cut(left.shape[1], left.shape[2] * right.shape[2]):
        np.matmul(left[:, part].transpose(0, 2, 1), right[:, part], out=memory)
        np.add(total, memory, out=total)


class _Parts:
    """How many images are worked on at a time, and memory for as many."""

    def __init__(self, x: Float[Tensor, "batch maps height width"], y: Float[Tensor, "batch results height width"]):
        tiles, maps = tiles_of(*x.shape[2:]), max(x.shape[1], y.shape[1])
        #: At the points, of all images.
        self.numbers = len(x) * tiles * POINTS * maps
        self._most = min(len(x), max(CHUNK // (tiles * POINTS * maps), -(-LEAST // tiles)))

    def memory(self, *like: Tensor) -> list[AtPoints]:
        """For maps like each of these, (batch, maps, height, width)."""
        return [AtPoints(self._most, maps) for maps in like]

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
        tiles = len(maps) * tiles_of(*maps.shape[2:]) // torch.get_num_threads()
        return min(results, given) >= MAPS and tiles >= max(TILES, max(results, given) // MAPS_A_TILE)

    def results(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        (x, kernel), *_ = pairs
        found = x.new_empty(len(x), len(kernel), *x.shape[2:])
        load_loops(x.dtype)
        given = [(arrays(maps), kernel_at_points(one.transpose(0, 1))) for maps, one in pairs]
        into, parts = found.numpy(), _Parts(x, found)

        def work(first: int, stop: int) -> None:
            values, total, more = parts.memory(x, found, found)
            for images in parts.between(first, stop):
                count = images.stop - images.start
                for number, (maps, at_points) in enumerate(given):
                    left = values.of_input(maps[images])
                    _multiply(left, at_points, total.of(count), more.of(count) if number else None)
                total.to_results(into[images])

        spread(work, len(x), parts.numbers)
        return found

    def back(self, terms: Sequence[Term], wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        (grad, x, kernel), *_ = terms
        load_loops(x.dtype)
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        given = [(arrays(term.grad), arrays(term.x), kernel_at_points(term.kernel)) for term in terms]
        into, parts = of_x.numpy(), _Parts(x, grad)
        sums: dict[int, Array] = {}

        def work(first: int, stop: int) -> None:
            grads, values, total, more = parts.memory(grad, x, x, x)
            of_kernel, memory = kernel.new_zeros(2, POINTS, *kernel.shape[:2]).numpy()
            for images in parts.between(first, stop):
                count = images.stop - images.start
                for number, (of_results, maps, at_points) in enumerate(given):
                    left = grads.of_results(of_results[images])
                    if wanted[0]:
                        _multiply(left, at_points, total.of(count), more.of(count) if number else None)
                    if wanted[1]:
                        _add_products(left, values.of_input(maps[images]), of_kernel, memory)
                if wanted[0]:
                    total.to_input(into[images])
            sums[first] = of_kernel

        spread(work, len(x), parts.numbers)
        of_kernel = torch.from_numpy(sum(sums[first] for first in sorted(sums)))
        return of_x if wanted[0] else None, kernel_from_points(of_kernel) if wanted[1] else None
