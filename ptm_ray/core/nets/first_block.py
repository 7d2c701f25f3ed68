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

from ptm_ray.core.nets import first_block_loops as loops
from ptm_ray.core.nets.compiling import Array, Arrays, arrays, spread
from ptm_ray.core.nets.passes import Scale
from ptm_ray.core.types import Float, Tensor

#: Numbers in the maps that are worked on at one time: more would leave the cache.
AT_ONCE = 2**17


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
            loops.activate(memory, self._width, self._scale, eps, *own)

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
            loops.moments(memory, len(self._kernel), *_of(self._moments, part))
            self._pass_back(self._of_pooled, part, memory, self._passed)
        (sums, products), seen = _of(self._moments, share), self._seen[share]
        seen[:] = self._kernel.astype(np.float64) @ products
        known = self._scale[0], _of(self._stats, share), sums, self._pixels, _of(self._passed, share), seen
        loops.found(self._kernel, *known, of_kernel[share], _of(of_scale, share))

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
        loops.moved((self._kernel, dot), self._scale[0], dot_scale, *known, *along)
        for part, memory in self._a_few(share, maps):
            kernel, level = _of(along, slice(part.start - share.start, part.stop - share.start))
            np.matmul(kernel, memory[:, maps:-1], out=memory[:, :maps])
            loops.pool_passed(memory, self._width, level, self._passes[part], pooled[part])

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
        loops.found_moved(kernels, (self._scale[0], dot_scale[0]), *known, seen, _of(self._means, share), *into)
        ways[:, 2 * maps : -1] = of_maps.transpose(0, 2, 1) @ np.concatenate(kernels)
        for part, memory in self._a_few(share, 2 * maps):
            unused = np.empty((len(memory), maps), dot.dtype)
            loops.pass_back(dot_grad[part], self._width, self._passes[part], memory, 0, unused)
            loops.pass_back(self._of_pooled[part], self._width, self._passes[part], memory, maps, unused)
            own = ways[part.start - share.start : part.stop - share.start]
            loops.put_back(np.matmul(own.transpose(0, 2, 1), memory), of_images[part])

    def _pass_back(self, grad: Array, part: slice, memory: Array, passed: Arrays) -> None:
        """For some images, what passes back, summed over pixels: weighted by the patches seen, and unweighted."""
        (around, total), maps = passed, len(self._kernel)
        loops.pass_back(grad[part], self._width, self._passes[part], memory, 0, total[part])
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
            loops.look_around(self._images[part], memory, maps)
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
