"""ResNet18 with a 3×3 first convolution and no first pooling, as small images need it.

Source: He et al. 2016, the CIFAR variant that DC, MTT and DATM evaluate on.
"""

import torch
from torch import Tensor, nn

from ptm_ray.core.nets.layers import Conv3x3, norm_layer


class _Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = (
            Conv3x3(width, out, bias=False)
            if stride == 1
            else nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        )
        self.norm1 = norm_layer(norm, out)
        self.conv2 = Conv3x3(out, out, bias=False)
        self.norm2 = norm_layer(norm, out)
        self.shortcut = (
            nn.Identity() if stride == 1 and width == out else nn.Conv2d(width, out, 1, stride=stride, bias=False)
        )
        self.norm_shortcut = nn.Identity() if isinstance(self.shortcut, nn.Identity) else norm_layer(norm, out)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + self.norm_shortcut(self.shortcut(x)))


class ResNet18(nn.Module):
    """Four stages of two blocks, 64 to 512 maps, global average pooling."""

    def __init__(self, channels: int, resolution: int, classes: int, norm: str = "instance") -> None:
        super().__init__()
        self.stem = Conv3x3(channels, 64, bias=False)
        self.norm_stem = norm_layer(norm, 64)
        blocks, width = [], 64
        for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [_Block(width, out, stride, norm), _Block(out, out, 1, norm)]
            width = out
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(batch, 512)"""
        out: Tensor = self.blocks(torch.relu(self.norm_stem(self.stem(images))))
        return out.mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        """(batch, classes)"""
        out: Tensor = self.classifier(features)
        return out
