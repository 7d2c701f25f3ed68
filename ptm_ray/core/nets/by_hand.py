"""The gradient of a ConvNet's loss, and the derivatives of its product with a direction, written out.

⟨g, v⟩, the product of the gradient with v, is how the loss moves as the parameters move along v. Its derivatives are
therefore how the loss's own derivatives move: a forward pass that carries how everything moves (named `dot_` here, as
in ẋ), and the product rule applied to the backward pass. Autograd comes to the same by going backward twice, but takes
the product of two sets of feature maps for a convolution with kernels as large as a map, and keeps half as much again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ptm_ray.core.gradient import Along
from ptm_ray.core.nets.blocks import passes_for
from ptm_ray.core.nets.passes import Moved, Scale, Statistics
from ptm_ray.core.types import Float, Tensor

#: Of inputs with fewer maps than this the gradient is a product and a sum of shifted copies: as a convolution it takes
#: three to four times as long as the gradient of the kernel, for images of one channel or three.
FEW_MAPS = 16


class Parts(NamedTuple):
    """Parameters of a ConvNet, or a direction in them."""

    kernels: Sequence[Tensor]
    scales: Sequence[Scale]
    head: Tensor
    bias: Tensor

    @classmethod
    def of(cls, named: Iterable[Tensor]) -> "Parts":
        """From a module's parameters in their order: all kernels, all scales and shifts, the head's two."""
        *pieces, head, bias = named
        depth = len(pieces) // 3
        scales = [Scale(*pieces[first : first + 2]) for first in range(depth, 3 * depth, 2)]
        return cls(pieces[:depth], scales, head, bias)

    def flat(self) -> Float[Tensor, " params"]:
        """As one vector, in the same order."""
        pieces = [*self.kernels, *(value for scale in self.scales for value in scale), self.head, self.bias]
        return torch.cat([piece.reshape(-1) for piece in pieces])


@dataclass
class _Block:
    """One block on the way forward, with what the way back needs of it; and then the gradients found there."""

    given: Tensor
    convolved: Tensor
    stats: Statistics
    of_convolved: Tensor | None = None
    of_pooled: Tensor | None = None


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

    def back(self, grad: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradients of input and kernel; None for what is not wanted."""
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
            found = [whole.back(grad, taken.to(grad.dtype), kernel, (True, False))[0] for grad, kernel in pairs]
            return torch.stack(found).sum(0)
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

    def back(self, grad: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
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


class ConvNetGradient:
    """∇θ of the mean cross-entropy, of a ConvNet with instance norms and average pooling.

    `split` cuts a parameter vector as the module orders its parameters. `half`: convolutions in bfloat16.
    """

    def __init__(
        self,
        split: Callable[[Tensor], Iterable[Tensor]],
        theta: Float[Tensor, " params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Float[Tensor, "batch classes"],
        *,
        eps: float,
        half: bool,
        keep: bool,
    ) -> None:
        self._split, self._passes = split, passes_for(images)
        self._convolution = self._first = Convolution(half, self._passes.ANY_MAPS)
        if self._passes.ANY_MAPS and images.shape[1] < FEW_MAPS:
            self._first = ColumnConvolution(half, images.shape)
        self._parts, self._labels = Parts.of(split(theta)), labels
        self._blocks: list[_Block] = []
        self._forward(images, eps)
        self.gradient = self._backward(keep)

    def _at(self, number: int) -> Convolution:
        """The convolution of a block."""
        return self._convolution if number else self._first

    def _forward(self, images: Tensor, eps: float) -> None:
        parts, pooled = self._parts, images
        for number, (kernel, scale) in enumerate(zip(parts.kernels, parts.scales, strict=True)):
            given = self._convolution.cast(pooled) if number else self._first.taken(images)
            convolved = self._at(number)(given, kernel)
            pooled, stats = self._passes.forward(convolved, scale, eps)
            self._blocks.append(_Block(given, convolved, stats))
        self._last, self._features = pooled.shape, pooled.flatten(1).to(parts.head.dtype)
        self._shares = torch.addmm(parts.bias, self._features, parts.head.t()).softmax(1)
        self._weight = self._labels.sum(1, keepdim=True) / len(images)
        self._of_logits = self._shares * self._weight - self._labels / len(images)

    def _backward(self, keep: bool) -> Float[Tensor, " params"]:
        parts, kernels, scales = self._parts, [], []
        of_pooled = (self._of_logits @ parts.head).view(self._last)
        for number in reversed(range(len(self._blocks))):
            block = self._blocks[number] if keep else self._blocks.pop()
            found, *of_scale = self._passes.gradient(of_pooled, block.convolved, parts.scales[number], block.stats)
            convolution = self._at(number)
            of_convolved = convolution.cast(found)
            if keep:
                block.of_convolved, block.of_pooled = of_convolved, of_pooled
            # Nobody asks for the gradient of the images here.
            of_pooled, of_kernel = convolution.back(
                of_convolved, block.given, parts.kernels[number], (number > 0, True)
            )
            kernels.append(of_kernel)
            scales.append(Scale(*of_scale))
        head = self._of_logits.t() @ self._features, self._of_logits.sum(0)
        return Parts(kernels[::-1], scales[::-1], *head).flat()

    @property
    def kept_bytes(self) -> int:
        """Of the feature maps that `along` needs."""
        return sum(
            maps.nbytes
            for block in self._blocks
            for maps in (block.given, block.convolved, block.of_convolved, block.of_pooled)
            if maps is not None
        )

    @torch.no_grad()
    def along(self, direction: Float[Tensor, " params"], in_theta: bool = True) -> Along:
        """Derivatives of ⟨gradient, direction⟩; frees what was kept."""
        dots = Parts.of(self._split(direction))
        moves = self._forward_moved(dots)
        mine = self._parts
        dot_features = moves[-1].pooled.flatten(1).to(mine.head.dtype)
        dot_logits = torch.addmm(dots.bias, dot_features, mine.head.t()).addmm_(self._features, dots.head.t())
        # How the logarithms of the shares move.
        dot_logs = dot_logits - (self._shares * dot_logits).sum(1, keepdim=True)
        dot_of_logits = self._shares * dot_logs * self._weight
        dot_of_pooled = (dot_of_logits @ mine.head + self._of_logits @ dots.head).view(self._last)
        kernels, scales, images = self._backward_moved(dots, moves, dot_of_pooled, in_theta)
        theta = None
        if in_theta:
            head = dot_of_logits.t() @ self._features + self._of_logits.t() @ dot_features
            theta = Parts(kernels, scales, head, dot_of_logits.sum(0)).flat()
        return Along(theta, images, -dot_logs / len(images))

    def _forward_moved(self, dots: Parts) -> list[Moved]:
        parts, moves = self._parts, list[Moved]()
        for block, kernel, dot_kernel, dot_scale in zip(
            self._blocks, parts.kernels, dots.kernels, dots.scales, strict=True
        ):
            dot = self._at(len(moves))(block.given, dot_kernel)
            if moves:
                dot += self._convolution(moves[-1].pooled, kernel)
            moves.append(self._passes.move(dot, block.convolved, dot_scale, block.stats))
        return moves

    def _backward_moved(
        self, dots: Parts, moves: Sequence[Moved], dot_of_pooled: Tensor, in_theta: bool
    ) -> tuple[list[Tensor], list[Scale], Tensor]:
        parts, kernels, scales = self._parts, list[Tensor](), list[Scale]()
        while self._blocks:
            block, number = self._blocks.pop(), len(self._blocks)
            kernel, dot_kernel, convolution = parts.kernels[number], dots.kernels[number], self._at(number)
            assert block.of_convolved is not None
            assert block.of_pooled is not None
            found, *of_scale = self._passes.gradient_moved(
                (block.of_pooled, dot_of_pooled),
                block.convolved,
                (parts.scales[number], dots.scales[number]),
                block.stats,
                moves[number],
            )
            scales.append(Scale(*of_scale))
            dot_of_convolved = convolution.cast(found)
            # The product rule on the gradients of input and kernel.
            if number == 0:
                _, of_kernel = convolution.back(dot_of_convolved, block.given, kernel, (False, in_theta))
                images = convolution.of_images([(found, kernel), (block.of_convolved, dot_kernel)], block.given)
            else:
                wanted, given = (True, in_theta), convolution.cast(moves[number - 1].pooled)
                dot_of_pooled, of_kernel = convolution.back(dot_of_convolved, block.given, kernel, wanted)
                more, of_kernel_more = convolution.back(block.of_convolved, given, dot_kernel, wanted)
                dot_of_pooled += more
                if in_theta:
                    of_kernel += of_kernel_more
            if in_theta:
                kernels.append(of_kernel)
        return kernels[::-1], scales[::-1], images
