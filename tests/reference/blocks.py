"""Norm, ReLU and pooling as one, by the framework's own operations."""

from torch.nn import functional as F


def slow_block(x, weight, bias, eps=1e-5):
    """The formula, spelled out map by map."""
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    scaled = weight.view(1, -1, 1, 1) * (x - mean) / (variance + eps).sqrt() + bias.view(1, -1, 1, 1)
    return F.avg_pool2d(scaled.clamp_min(0), 2)
