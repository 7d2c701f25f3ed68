"""Convolution and normalisation, shared by the architectures."""

import math

from torch import Tensor, nn

from ptm_ray.core.nets.convolutions import convolved

NORMS = ("instance", "group", "batch", "none")
#: Added to variances.
EPS = 1e-5


def norm_layer(norm: str, channels: int) -> nn.Module:
    """One normalisation layer for `channels` maps.

    Instance norm is group norm with a group per channel: the same numbers, learnable scale and shift, and no
    second code path in the framework's double backward. Group norm has a group per 16 maps, or the next number that
    divides them.
    """
    if norm == "instance":
        return nn.GroupNorm(channels, channels, EPS)
    if norm == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.Identity()


class Conv3x3(nn.Conv2d):
    """A convolution that keeps the size of maps, by the fastest way."""

    def __init__(self, channels: int, results: int, bias: bool = True) -> None:
        super().__init__(channels, results, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return convolved(x, self.weight, self.bias)
