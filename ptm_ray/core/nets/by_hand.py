"""The gradient of a ConvNet's loss, and the derivatives of its product with a direction, written out.

⟨g, v⟩, the product of the gradient with v, is how the loss moves as the parameters move along v. Its derivatives are
therefore how the loss's own derivatives move: a forward pass that carries how everything moves (named `dot_` here, as
in ẋ), and the product rule applied to the backward pass. Autograd comes to the same by going backward twice, but takes
the product of two sets of feature maps for a convolution with kernels as large as a map, and keeps half as much again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ptm_ray.core.gradient import Along
from ptm_ray.core.nets.blocks import passes_for
from ptm_ray.core.nets.convolutions import Convolution, Term, first_convolution, inner_convolution
from ptm_ray.core.nets.passes import Moved, Scale, Statistics
from ptm_ray.core.types import Float, Tensor


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

    convolution: Convolution
    given: Tensor
    convolved: Tensor
    stats: Statistics
    of_convolved: Tensor | None = None
    of_pooled: Tensor | None = None


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
        self._half = half
        self._parts, self._labels = Parts.of(split(theta)), labels
        self._blocks: list[_Block] = []
        self._forward(images, eps)
        self.gradient = self._backward(keep)

    def _forward(self, images: Tensor, eps: float) -> None:
        parts, pooled = self._parts, images
        for number, (kernel, scale) in enumerate(zip(parts.kernels, parts.scales, strict=True)):
            how = self._half, self._passes.ANY_MAPS
            convolution = inner_convolution(pooled, kernel, *how) if number else first_convolution(images, *how)
            given = convolution.cast(pooled) if number else convolution.taken(images)
            convolved = convolution.results([(given, kernel)])
            pooled, stats = self._passes.forward(convolved, scale, eps)
            self._blocks.append(_Block(convolution, given, convolved, stats))
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
            of_convolved = block.convolution.cast(found)
            if keep:
                block.of_convolved, block.of_pooled = of_convolved, of_pooled
            # Nobody asks for the gradient of the images here.
            term = Term(of_convolved, block.given, parts.kernels[number])
            of_pooled, of_kernel = block.convolution.back([term], (number > 0, True))
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
            pairs = [(block.given, dot_kernel), *((move.pooled, kernel) for move in moves[-1:])]
            dot = block.convolution.results(pairs)
            moves.append(self._passes.move(dot, block.convolved, dot_scale, block.stats))
        return moves

    def _backward_moved(
        self, dots: Parts, moves: Sequence[Moved], dot_of_pooled: Tensor, in_theta: bool
    ) -> tuple[list[Tensor], list[Scale], Tensor]:
        parts, kernels, scales = self._parts, list[Tensor](), list[Scale]()
        while self._blocks:
            block, number = self._blocks.pop(), len(self._blocks)
            kernel, dot_kernel, convolution = parts.kernels[number], dots.kernels[number], block.convolution
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
            terms = [Term(dot_of_convolved, block.given, kernel)]
            if number == 0:
                _, of_kernel = convolution.back(terms, (False, in_theta))
                images = convolution.of_images([(found, kernel), (block.of_convolved, dot_kernel)], block.given)
            else:
                # The product rule on the gradients of input and kernel.
                terms.append(Term(block.of_convolved, convolution.cast(moves[number - 1].pooled), dot_kernel))
                dot_of_pooled, of_kernel = convolution.back(terms, (True, in_theta))
            if in_theta:
                kernels.append(of_kernel)
        return kernels[::-1], scales[::-1], images
