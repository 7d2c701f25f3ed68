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
    """3×3, in one precision; what it gives has that of its parameters, whatever it computes in."""

    def __init__(self, half: bool) -> None:
        self._half = half

    def cast(self, x: Tensor) -> Tensor:
        return x.bfloat16() if self._half else x

    def _restored(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) if self._half else x

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        shift = None if bias is None else self.cast(bias)
        return self._restored(F.conv2d(self.cast(x), self.cast(kernel), shift, padding=1), kernel.dtype)

    def back(self, grad: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradients of input and kernel; None for what is not wanted."""
        geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
        found = torch.ops.aten.convolution_backward(grad, x, self.cast(kernel), None, *geometry)
        of_x, of_kernel = (part if part is None else self._restored(part, kernel.dtype) for part in found[:2])
        return of_x, of_kernel


def _of_images(pairs: Sequence[tuple[Tensor, Tensor]], images: Tensor) -> Tensor:
    """Sum of the gradients of a convolution's input over pairs of its output's gradient and its kernel; float32."""
    channels, height, width = images.shape[1:]
    if channels >= FEW_MAPS:
        whole = Convolution(half=False)
        found = [whole.back(grad, images.to(grad.dtype), kernel, (True, False))[0] for grad, kernel in pairs]
        return torch.stack(found).sum(0)
    factors = [(kernel.flatten(1).t().expand(len(grad), -1, -1), grad.flatten(2)) for grad, kernel in pairs]
    copies = torch.bmm(*factors[0])
    for more in factors[1:]:
        copies.baddbmm_(*more)
    return F.fold(copies, (height, width), 3, padding=1)


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
        self._split, self._convolution, self._passes = split, Convolution(half), passes_for(images)
        self._parts, self._labels = Parts.of(split(theta)), labels
        self._blocks: list[_Block] = []
        # By way of a flat view, since a single channel's memory can be in both orders at once, and a convolution would
        # then give its maps in the wrong one.
        self._forward(images.reshape(-1).view(images.shape), eps)
        self.gradient = self._backward(keep)

    def _forward(self, images: Tensor, eps: float) -> None:
        convolution, parts, pooled = self._convolution, self._parts, images
        for kernel, scale in zip(parts.kernels, parts.scales, strict=True):
            given = convolution.cast(pooled)
            convolved = convolution(given, kernel)
            pooled, stats = self._passes.forward(convolved, scale, eps)
            self._blocks.append(_Block(given, convolved, stats))
        self._last, self._features = pooled.shape, pooled.flatten(1)
        self._shares = torch.addmm(parts.bias, self._features, parts.head.t()).softmax(1)
        self._weight = self._labels.sum(1, keepdim=True) / len(images)
        self._of_logits = self._shares * self._weight - self._labels / len(images)

    def _backward(self, keep: bool) -> Float[Tensor, " params"]:
        convolution, parts = self._convolution, self._parts
        kernels, scales = [], []
        of_pooled = (self._of_logits @ parts.head).view(self._last)
        for number in reversed(range(len(self._blocks))):
            block = self._blocks[number] if keep else self._blocks.pop()
            found, *of_scale = self._passes.gradient(of_pooled, block.convolved, parts.scales[number], block.stats)
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
        mine, dot_features = self._parts, moves[-1].pooled.flatten(1)
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
        convolution, parts = self._convolution, self._parts
        moves: list[Moved] = []
        for block, kernel, dot_kernel, dot_scale in zip(
            self._blocks, parts.kernels, dots.kernels, dots.scales, strict=True
        ):
            dot = convolution(block.given, dot_kernel)
            if moves:
                dot += convolution(moves[-1].pooled, kernel)
            moves.append(self._passes.move(dot, block.convolved, dot_scale, block.stats))
        return moves

    def _backward_moved(
        self, dots: Parts, moves: Sequence[Moved], dot_of_pooled: Tensor, in_theta: bool
    ) -> tuple[list[Tensor], list[Scale], Tensor]:
        convolution, parts = self._convolution, self._parts
        kernels: list[Tensor] = []
        scales: list[Scale] = []
        while self._blocks:
            block, number = self._blocks.pop(), len(self._blocks)
            kernel, dot_kernel = parts.kernels[number], dots.kernels[number]
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
                pairs = [(found, kernel), (block.of_convolved.to(kernel.dtype), dot_kernel)]
                images = _of_images(pairs, block.given)
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
