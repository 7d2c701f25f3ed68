"""VGG11 and AlexNet at small resolutions, for evaluation across architectures.

Source: Simonyan & Zisserman 2015; Krizhevsky et al. 2012. As in DC and MTT: 3×3 or 5×5 first kernels without stride,
one linear head in place of the fully connected stack. Pooling stops at two pixels a side: instance norm of a single
one is 0 whatever the image, and the network blind.
"""

import torch
from torch import Tensor, nn

from ptm_ray.core.nets.layers import Conv3x3, norm_layer

#: Numbers are 3×3 widths, (width, kernel) others, "M" halves the resolution.
Plan = list[int | tuple[int, int] | str]


class Stack(nn.Module):
    """Convolutions in a row: numbers are 3×3 widths, (width, kernel) others, "M" halves the resolution while it can."""

    def __init__(
        self,
        plan: Plan,
        channels: int,
        resolution: int,
        classes: int,
        norm: str,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, side = channels, resolution
        for step in plan:
            if isinstance(step, str):
                if side >= 4:
                    layers.append(nn.MaxPool2d(2))
                    side //= 2
                continue
            out, kernel = step if isinstance(step, tuple) else (step, 3)
            convolution = nn.Conv2d(width, out, kernel, padding=kernel // 2) if kernel != 3 else Conv3x3(width, out)
            layers += [convolution, _Normed(norm, out)]
            width = out
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(batch, last width): spatially averaged."""
        out: Tensor = self.layers(images)
        return out.mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        """(batch, classes)"""
        out: Tensor = self.classifier(features)
        return out


class _Normed(nn.Module):
    def __init__(self, norm: str, channels: int) -> None:
        super().__init__()
        self.norm = norm_layer(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x))


def vgg11(channels: int, resolution: int, classes: int, norm: str = "instance") -> nn.Module:
    """Eight convolutions of 64 to 512 maps."""
    plan: Plan = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512]
    return Stack(plan, channels, resolution, classes, norm)


def alexnet(channels: int, resolution: int, classes: int, norm: str = "instance") -> nn.Module:
    """Five convolutions of 128 to 256 maps."""
    plan: Plan = [(128, 5), "M", (192, 5), "M", 256, 192, 192, "M"]
    return Stack(plan, channels, resolution, classes, norm)
