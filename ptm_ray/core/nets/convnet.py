"""ConvNet, the field's standard matching network: depth × (3×3 convolution, norm, ReLU, 2×2 pooling), linear head.

Source: Gidaris & Komodakis 2018, as used by DC, DM and MTT.
"""

import itertools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptm_ray.core.nets.blocks import avg_pool, norm_relu_pool
from ptm_ray.core.nets.by_hand import ConvNetGradient
from ptm_ray.core.nets.convolutions import convolved
from ptm_ray.core.nets.layers import EPS, norm_layer

POOLINGS = ("avg", "max")


def default_depth(resolution: int) -> int:
    """3 blocks up to 32 pixels, then one more for every doubling, so that 3 or 4 pixels a side reach the head."""
    depth = 3
    while resolution // 2**depth > 4:
        depth += 1
    return depth


def max_depth(resolution: int) -> int:
    """The most blocks that leave at least one pixel."""
    depth = 0
    while resolution // 2 ** (depth + 1) >= 1:
        depth += 1
    return depth


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


class ConvNet(nn.Module):
    """Width and depth as asked; instance norm and average pooling unless told otherwise.

    With a `precision` of bfloat16 convolutions alone are computed so, from parameters of whatever precision: they are
    nearly all of the work, and what norms and losses sum up stays exact.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        classes: int,
        width: int = 128,
        depth: int | None = None,
        norm: str = "instance",
        pooling: str = "avg",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        depth = depth or default_depth(resolution)
        widths = [channels] + [width] * depth
        # Without a norm to undo it, a convolution's bias matters; before one it only shifts what is subtracted.
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=norm == "none") for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(norm_layer(norm, width) for _ in range(depth))
        self._half = precision == "bfloat16"
        self._pool = avg_pool if pooling == "avg" else _max_pool
        self._fused = norm == "instance" and pooling == "avg"
        #: See `Network.by_hand`.
        self.by_hand = partial(ConvNetGradient, eps=EPS, half=self._half) if self._fused else None
        self.classifier = nn.Linear(width * (resolution // 2**depth) ** 2, classes)

    def features(self, images: Tensor) -> Tensor:
        """(batch, width · (resolution / 2^depth)²)"""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            x = self._after(convolved(x, conv.weight, conv.bias, self._half), norm)
        return x.flatten(1)

    def _after(self, x: Tensor, norm: nn.Module) -> Tensor:
        if self._fused:
            assert isinstance(norm, nn.GroupNorm)
            return norm_relu_pool(x, norm.weight, norm.bias, norm.eps)
        return self._pool(torch.relu(norm(x)))

    def head(self, features: Tensor) -> Tensor:
        """(batch, classes)"""
        out: Tensor = self.classifier(features)
        return out
