"""A matching step the way it was published: the student's steps unrolled as one graph, the framework's own layers.

Written from the description of MTT (Cazenavette et al. 2022): a ConvNet whose parameters are cut from one flat vector,
`create_graph` at every step, and one backward pass through all of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ptm_ray.core import augment
from ptm_ray.core.batch import Batch

#: Of experts.
RATE = 0.01


class PlainConvNet(nn.Module):
    """depth × (convolution, instance norm as group norm, ReLU, average pooling), linear head."""

    def __init__(self, channels: int, resolution: int, classes: int, width: int, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (resolution // 2**depth) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(images).flatten(1))
        return out


def plain_training(net: nn.Module, loader: Any, ops: Sequence[str], draw: torch.Generator) -> Iterator[None]:
    """SGD at the published rate on one pass of a DataLoader after another, without end; yields after every step."""
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    while True:
        for images, labels in loader:
            seen = augment.apply(augment.draw(ops, len(images), draw), images)
            optimiser.zero_grad()
            F.cross_entropy(net(seen), labels).backward()
            optimiser.step()
            yield


def plain_step(
    net: PlainConvNet, start: Tensor, target: Tensor, images: Tensor, labels: Tensor, lr: Tensor, batches: list[Batch]
) -> tuple[Tensor, Tensor]:
    """Gradients of the matching loss in the images and in the inner lr."""
    shapes = {key: value.shape for key, value in net.named_parameters()}
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    theta = start.detach().requires_grad_()
    for rows, draw in batches:
        pieces = torch.split(theta, [shape.numel() for shape in shapes.values()])
        params = {key: piece.view(shape) for (key, shape), piece in zip(shapes.items(), pieces, strict=True)}
        logits = functional_call(net, params, (augment.apply(draw, images[rows]),))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows]), theta, create_graph=True)
        theta = theta - lr * gradient
    loss = (theta - target).square().sum() / (start - target).square().sum()
    return torch.autograd.grad(loss, (images, lr))
