"""The gradient of a ConvNet's loss, and the derivatives of its product with a direction, written out.

⟨g, v⟩, the product of the gradient with v, is how the loss moves as the parameters move along v. Its derivatives are
therefore how the loss's own derivatives move: a forward pass that carries how everything moves (named `dot_` here, as
in ẋ), and the product rule applied to the backward pass. Autograd comes to the same by going backward twice, but takes
the product of two sets of feature maps for a convolution with kernels as large as a map, and keeps half as much again.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from ptm_ray.core.gradient import Along
from ptm_ray.core.nets.blocks import passes_for
from ptm_ray.core.nets.convolutions import FEW_MAPS, Term, first_convolution, inner_convolution
from ptm_ray.core.nets.passes import Scale
from ptm_ray.core.types import Float, Tensor

if TYPE_CHECKING:
    from ptm_ray.core.nets.first_block import FirstBlock


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


class _Block:
    """Convolution, norm, ReLU and pooling: the way forward, and all that the way back needs of it.

    `first`: what it sees are images, whose gradient nobody asks for before `gradient_moved`.
    """

    def __init__(self, given: Tensor, kernel: Tensor, scale: Scale, half: bool, first: bool) -> None:
        self._passes, self._first = passes_for(given), first
        how = half, self._passes.ANY_MAPS
        self._convolution = first_convolution(given, *how) if first else inner_convolution(given, kernel, *how)
        self._given = self._convolution.taken(given) if first else self._convolution.cast(given)
        self._kernel, self._scale = kernel, scale

    def forward(self, eps: float) -> Tensor:
        """What was pooled."""
        self._convolved = self._convolution.results([(self._given, self._kernel)])
        pooled, self._stats = self._passes.forward(self._convolved, self._scale, eps)
        return pooled

    def gradient(self, of_pooled: Tensor, keep: bool) -> tuple[Tensor | None, Tensor, Scale]:
        """Of what was given (not of images), the kernel, scale and shift."""
        found, *of_scale = self._passes.gradient(of_pooled, self._convolved, self._scale, self._stats)
        of_convolved = self._convolution.cast(found)
        if keep:
            self._of_pooled, self._of_convolved = of_pooled, of_convolved
        term = Term(of_convolved, self._given, self._kernel)
        of_given, of_kernel = self._convolution.back([term], (not self._first, True))
        return of_given, of_kernel, Scale(*of_scale)

    @property
    def kept_bytes(self) -> int:
        """Of feature maps."""
        kept = self._given, self._convolved, self._of_convolved, self._of_pooled
        return sum(maps.nbytes for maps in kept)

    def move(self, dot_given: Tensor | None, dot_kernel: Tensor, dot_scale: Scale) -> Tensor:
        """How what was pooled moves, as what was given (images don't), the kernel, scale and shift do."""
        moved = [] if dot_given is None else [(dot_given, self._kernel)]
        dot = self._convolution.results([(self._given, dot_kernel), *moved])
        self._dots = dot_given, dot_kernel, dot_scale
        self._moved = self._passes.move(dot, self._convolved, dot_scale, self._stats)
        return self._moved.pooled

    def gradient_moved(self, dot_of_pooled: Tensor, in_theta: bool) -> tuple[Tensor, Tensor | None, Scale]:
        """How what `gradient` gives moves, the kernel's where asked for; of images, what ⟨gradient, direction⟩ has."""
        (dot_given, dot_kernel, dot_scale), convolution = self._dots, self._convolution
        found, *of_scale = self._passes.gradient_moved(
            (self._of_pooled, dot_of_pooled), self._convolved, (self._scale, dot_scale), self._stats, self._moved
        )
        terms = [Term(convolution.cast(found), self._given, self._kernel)]
        if dot_given is None:
            _, of_kernel = convolution.back(terms, (False, in_theta))
            pairs = [(found, self._kernel), (self._of_convolved, dot_kernel)]
            return convolution.of_images(pairs, self._given), of_kernel, Scale(*of_scale)
        # The product rule on the gradients of input and kernel.
        terms.append(Term(self._of_convolved, convolution.cast(dot_given), dot_kernel))
        return *convolution.back(terms, (True, in_theta)), Scale(*of_scale)


@cache
def _fused(dtype: torch.dtype) -> "type[FirstBlock] | None":
    """Ready for such numbers; None where numba is not installed: the same results, more slowly."""
    try:
        from ptm_ray.core.nets.first_block import FirstBlock, load_loops
    except ImportError:
        return None
    load_loops(dtype)
    return FirstBlock


def _block(given: Tensor, kernel: Tensor, scale: Scale, half: bool, first: bool) -> "_Block | FirstBlock":
    few = first and given.device.type == "cpu" and given.shape[1] < FEW_MAPS
    if few and (fused := _fused(given.dtype)) is not None:
        return fused(given, kernel, scale)
    return _Block(given, kernel, scale, half, first)


class ConvNetGradient:
    """∇θ of the mean cross-entropy, of a ConvNet with instance norms and average pooling.

    `split` cuts a parameter vector as the module orders its parameters. `half`: convolutions in bfloat16, but for those
    of images where these are computed in the cache (`first_block`).
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
        self._split, self._half = split, half
        self._parts, self._labels = Parts.of(split(theta)), labels
        self._blocks: list[_Block | FirstBlock] = []
        self._forward(images, eps)
        self.gradient = self._backward(keep)

    def _forward(self, images: Tensor, eps: float) -> None:
        parts, pooled = self._parts, images
        for kernel, scale in zip(parts.kernels, parts.scales, strict=True):
            block = _block(pooled, kernel, scale, self._half, first=not self._blocks)
            pooled = block.forward(eps)
            self._blocks.append(block)
        self._last, self._features = pooled.shape, pooled.flatten(1).to(parts.head.dtype)
        self._shares = torch.addmm(parts.bias, self._features, parts.head.t()).softmax(1)
        self._weight = self._labels.sum(1, keepdim=True) / len(images)
        self._of_logits = self._shares * self._weight - self._labels / len(images)

    def _backward(self, keep: bool) -> Float[Tensor, " params"]:
        kernels, scales = list[Tensor](), list[Scale]()
        of_pooled: Tensor | None = (self._of_logits @ self._parts.head).view(self._last)
        for number in reversed(range(len(self._blocks))):
            block = self._blocks[number] if keep else self._blocks.pop()
            assert of_pooled is not None
            of_pooled, of_kernel, of_scale = block.gradient(of_pooled, keep)
            kernels.append(of_kernel)
            scales.append(of_scale)
        head = self._of_logits.t() @ self._features, self._of_logits.sum(0)
        return Parts(kernels[::-1], scales[::-1], *head).flat()

    @property
    def kept_bytes(self) -> int:
        """Of the feature maps that `along` needs."""
        return sum(block.kept_bytes for block in self._blocks)

    @torch.no_grad()
    def along(self, direction: Float[Tensor, " params"], in_theta: bool = True) -> Along:
        """Derivatives of ⟨gradient, direction⟩; frees what was kept."""
        dots, mine = Parts.of(self._split(direction)), self._parts
        dot_pooled: Tensor | None = None
        for block, dot_kernel, dot_scale in zip(self._blocks, dots.kernels, dots.scales, strict=True):
            dot_pooled = block.move(dot_pooled, dot_kernel, dot_scale)
        assert dot_pooled is not None
        dot_features = dot_pooled.flatten(1).to(mine.head.dtype)
        dot_logits = torch.addmm(dots.bias, dot_features, mine.head.t()).addmm_(self._features, dots.head.t())
        # How the logarithms of the shares move.
        dot_logs = dot_logits - (self._shares * dot_logits).sum(1, keepdim=True)
        dot_of_logits = self._shares * dot_logs * self._weight
        found = (dot_of_logits @ mine.head + self._of_logits @ dots.head).view(self._last)
        kernels, scales = list[Tensor](), list[Scale]()
        while self._blocks:
            found, dot_of_kernel, of_scale = self._blocks.pop().gradient_moved(found, in_theta)
            if dot_of_kernel is not None:
                kernels.append(dot_of_kernel)
            scales.append(of_scale)
        theta = None
        if in_theta:
            head = dot_of_logits.t() @ self._features + self._of_logits.t() @ dot_features
            theta = Parts(kernels[::-1], scales[::-1], head, dot_of_logits.sum(0)).flat()
        return Along(theta, found, -dot_logs / len(self._labels))
