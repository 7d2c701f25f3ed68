"""Names of architectures, and the one function that builds them."""

from collections.abc import Callable

import torch
from torch import nn

from ptm_ray.core.nets.classic import alexnet, vgg11
from ptm_ray.core.nets.convnet import ConvNet, max_depth
from ptm_ray.core.nets.resnet import ResNet18
from ptm_ray.core.nets.vit import ViT
from ptm_ray.core.params import Network
from ptm_ray.errors import ConfigError, did_you_mean


def _convnet(channels: int, resolution: int, classes: int, **options: int | str) -> nn.Module:
    depth = options.get("depth")
    deepest = max_depth(resolution)
    if isinstance(depth, int) and depth > deepest:
        raise ConfigError(
            f"images of {resolution} pixels are too small for a ConvNet of depth {depth}; use depth {deepest} or less"
        )
    return ConvNet(channels, resolution, classes, **options)  # type: ignore[arg-type]


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "convnet": _convnet,
    "resnet18": ResNet18,
    "resnet18_bn": lambda channels, resolution, classes: ResNet18(channels, resolution, classes, norm="batch"),
    "vgg11": vgg11,
    "alexnet": alexnet,
    "vit": ViT,
}

#: Below this many pixels the architecture's own strides leave nothing to look at (for resnet18: one pixel, which
#: instance norm turns into 0).
SMALLEST = {"convnet": 8, "resnet18": 9, "resnet18_bn": 8, "vgg11": 16, "alexnet": 8, "vit": 8}


def build(name: str, *, channels: int, resolution: int, classes: int, **options: int | str) -> Network:
    """The named architecture for square images of this many channels and pixels.

    `options` are the architecture's own (ConvNet: width, depth, norm, pooling, precision). Raises `ConfigError` for an
    unknown name and for images too small for it.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown network {name!r}; {did_you_mean(name, ARCHITECTURES)}")
    if resolution < SMALLEST[name]:
        raise ConfigError(
            f"images of {resolution} pixels are too small for {name}, which needs {SMALLEST[name]} or more; "
            "use larger images or another network"
        )
    with torch.device("meta"):
        module = ARCHITECTURES[name](channels, resolution, classes, **options)
    return Network(module, name)
