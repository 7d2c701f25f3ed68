"""A small vision transformer, the one evaluation network without convolutions.

Source: Dosovitskiy et al. 2021, at the size that small images bear (6 blocks, 192 wide, 4-pixel patches at 32).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        mlp: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + mlp


class ViT(nn.Module):
    """Patches, learned positions, pre-norm blocks, mean over tokens."""

    def __init__(
        self, channels: int, resolution: int, classes: int, width: int = 192, depth: int = 6, heads: int = 3
    ) -> None:
        super().__init__()
        patch = max(1, resolution // 8)
        side = resolution // patch
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position_tokens = nn.Parameter(torch.zeros(1, side * side, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(batch, width)"""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position_tokens
        out: Tensor = self.norm(self.blocks(tokens))
        return out.mean(1)

    def head(self, features: Tensor) -> Tensor:
        """(batch, classes)"""
        out: Tensor = self.classifier(features)
        return out
