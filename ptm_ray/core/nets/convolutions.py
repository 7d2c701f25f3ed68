"""3×3 convolutions with their gradients: sums of them, since a product rule has two of each.

Which one is fastest depends on maps, device and precision: `first_convolution` and `inner_convolution` choose.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from ptm_ray.core.types import Float, Tensor

if TYPE_CHECKING:
    from ptm_ray.core.nets.winograd import WinogradConvolution

#: Of inputs with fewer maps than this the gradient is a product and a sum of shifted copies: as a convolution it takes
#: three to four times as long as the gradient of the kernel, for images of one channel or three.
FEW_MAPS = 16


class Term(NamedTuple):
    """Of a sum of convolutions: the gradient of what it gives, and what it was given."""

    grad: Tensor
    x: Tensor
    kernel: Tensor


class Convolution:
    """3×3, in one precision; what it gives has that of its parameters, whatever it computes in.

    With `any_maps`, maps lie channels last, as tensor cores want them, and stay in the precision that they were
    computed in: half the memory to pass through, where that is the bottleneck.
    """

    def __init__(self, half: bool, any_maps: bool = False) -> None:
        self._half, self._any_maps = half, any_maps

    def cast(self, x: Tensor) -> Tensor:
        return x.bfloat16() if self._half else x

    def taken(self, images: Tensor) -> Tensor:
        """Images as a first convolution takes them: in the order in memory that their maps are to have."""
        # By way of a flat view, since a single channel's memory can be in both orders at once, and a convolution would
        # then give its maps in the wrong one.
        flat = images.reshape(-1)
        if not self._any_maps:
            return self.cast(flat.view(images.shape))
        _, channels, height, width = images.shape
        by = channels * height * width, 1, width * channels, channels
        return self.cast(images.new_empty(flat.shape).as_strided(images.shape, by).copy_(images))

    def _kernel(self, kernel: Tensor) -> Tensor:
        cast = self.cast(kernel)
        return cast.contiguous(memory_format=torch.channels_last) if self._any_maps else cast

    def _restored(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) if self._half and not self._any_maps else x

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        shift = None if bias is None else self.cast(bias)
        return self._restored(F.conv2d(self.cast(x), self._kernel(kernel), shift, padding=1), kernel.dtype)

    def results(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum over pairs of an input and a kernel."""
        first, *rest = pairs
        found = self(*first)
        for pair in rest:
            found += self(*pair)
        return found

    def back(self, terms: Sequence[Term], wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradients of input and kernel, summed over terms; None for what is not wanted."""
        first, *rest = terms
        found = self._back(*first, wanted)
        for term in rest:
            for total, more in zip(found, self._back(*term, wanted), strict=True):
                if total is not None:
                    total += more
        return found

    def _back(self, grad: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
        of_x, of_kernel, _ = torch.ops.aten.convolution_backward(grad, x, self._kernel(kernel), None, *geometry)
        return (
            None if of_x is None else self._restored(of_x, kernel.dtype),
            None if of_kernel is None else of_kernel.to(kernel.dtype),
        )

    def of_images(self, pairs: Sequence[tuple[Tensor, Tensor]], taken: Tensor) -> Tensor:
        """Of what was taken: the sum over pairs of the maps' gradient and a kernel, in the kernels' precision."""
        pairs = [(grad.to(kernel.dtype), kernel) for grad, kernel in pairs]
        channels, height, width = taken.shape[1:]
        if channels >= FEW_MAPS:
            whole = Convolution(False, self._any_maps)
            terms = [Term(grad, taken.to(grad.dtype), kernel) for grad, kernel in pairs]
            found: Tensor = whole.back(terms, (True, False))[0]
            return found
        factors = [(kernel.flatten(1).t().expand(len(grad), -1, -1), grad.flatten(2)) for grad, kernel in pairs]
        columns = torch.bmm(*factors[0])
        for more in factors[1:]:
            columns.baddbmm_(*more)
        return F.fold(columns, (height, width), 3, padding=1)


class ColumnConvolution(Convolution):
    """The same of images of few channels, for any maps: products of kernels with the columns of all 3×3 windows.

    A GPU's convolutions are made for many maps, and take several times as long for the gradient of kernels that see
    one or three. What is `taken` are the columns, (batch · height · width, 9 · channels).
    """

    def __init__(self, half: bool, size: torch.Size) -> None:
        super().__init__(half, any_maps=True)
        self._size = size

    def taken(self, images: Tensor) -> Tensor:
        windows = F.pad(self.cast(images), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 9 * images.shape[1])

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        count, _, height, width = self._size
        maps = x @ self.cast(kernel.flatten(1)).t()
        return maps.view(count, height, width, len(kernel)).permute(0, 3, 1, 2)

    def _back(self, grad: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        of_kernel = (_by_pixel(grad).t() @ x).view(kernel.shape).to(kernel.dtype) if wanted[1] else None
        return None, of_kernel

    def of_images(self, pairs: Sequence[tuple[Tensor, Tensor]], taken: Tensor) -> Tensor:
        products = [_by_pixel(self.cast(grad)) @ self.cast(kernel.flatten(1)) for grad, kernel in pairs]
        columns = torch.stack(products).to(pairs[0][1].dtype).sum(0)
        count, _, height, width = self._size
        columns = columns.view(count, height * width, -1).transpose(1, 2)
        return F.fold(columns, (height, width), 3, padding=1)


def _by_pixel(
    maps: Float[Tensor, "batch maps height width"],
) -> Float[Tensor, "pixels maps"]:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


@cache
def _winograd() -> "WinogradConvolution | None":
    """None where numba is not installed: the same results, more slowly."""
    try:
        from ptm_ray.core.nets.winograd import WinogradConvolution
    except ImportError:
        return None
    return WinogradConvolution()


def by_tiles(
    maps: Float[Tensor, "batch maps height width"], kernel: Float[Tensor, "results maps 3 3"], half: bool
) -> "WinogradConvolution | None":
    """The convolution that goes by tiles, where it can and is faster."""
    found = None if half or maps.device.type != "cpu" else _winograd()
    return found if found is not None and found.pays(maps, kernel) else None


def first_convolution(images: Float[Tensor, "batch channels height width"], half: bool, any_maps: bool) -> Convolution:
    """The one that sees images."""
    if any_maps and images.shape[1] < FEW_MAPS:
        return ColumnConvolution(half, images.shape)
    return Convolution(half, any_maps)


def inner_convolution(
    maps: Float[Tensor, "batch maps height width"],
    kernel: Float[Tensor, "results maps 3 3"],
    half: bool,
    any_maps: bool,
) -> Convolution:
    """One that sees what others gave."""
    return by_tiles(maps, kernel, half) or Convolution(half, any_maps)


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Convolution, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.way = way
        ctx.save_for_backward(x, kernel)
        return way.results([(x, kernel)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        return None, *_ConvolvedBack.apply(ctx.way, wanted, grads[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _ConvolvedBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Convolution, wanted: tuple[bool, bool], *term: Tensor) -> tuple[Tensor | None, ...]:
        ctx.way = way
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*term)
        return way.back([Term(*term)], wanted)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """How ⟨u, gradient of x⟩ + ⟨w, gradient of kernel⟩ = ⟨grad, u * kernel + x * w⟩ depends on grad, x, kernel."""
        (grad, x, kernel), (u, w) = ctx.saved_tensors, grads
        pairs = [pair for pair, moved in (((u, kernel), u), ((x, w), w)) if moved is not None]
        parts = [_Convolved.apply(ctx.way, *pair) for pair in pairs]  # type: ignore[no-untyped-call]
        if not parts:
            return (None,) * 5
        likes = x if u is None else u, kernel if w is None else w
        wanted = w is not None, u is not None
        return None, None, sum(parts), *_ConvolvedBack.apply(ctx.way, wanted, grad, *likes)  # type: ignore[no-untyped-call]


def convolved(
    x: Float[Tensor, "batch maps height width"],
    kernel: Float[Tensor, "results maps 3 3"],
    bias: Float[Tensor, " results"] | None = None,
    half: bool = False,
) -> Float[Tensor, "batch results height width"]:
    """3×3 with a pixel of padding, which autograd can differentiate any number of times."""
    way = by_tiles(x, kernel, half)
    if way is None:
        return Convolution(half)(x, kernel, bias)
    found: Tensor = _Convolved.apply(way, x, kernel)  # type: ignore[no-untyped-call]
    return found if bias is None else found + bias[:, None, None]
