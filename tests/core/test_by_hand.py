"""The ConvNet's gradient by hand, and its derivatives along a direction, against autograd on the framework's layers."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from ptm_ray.core import nets
from ptm_ray.core.gradient import gradient_in_images, loss_gradient

#: Channels, pixels a side, classes, width, depth. The last has so many channels that images get their gradient by a
#: convolution.
CASES = [(1, 28, 2, 6, 3), (3, 16, 5, 4, 2), (2, 9, 3, 5, 1), (17, 8, 3, 4, 2)]
#: So wide, and of so many pixels, that its second convolution goes by tiles.
WIDE = (1, 32, 2, 64, 3)


class Slow(torch.nn.Module):
    """The same network from the framework's layers alone, its parameters in the same order."""

    def __init__(self, channels, side, classes, width, depth):
        super().__init__()
        inputs = [channels, *[width] * (depth - 1)]
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(n, width, 3, padding=1, bias=False) for n in inputs)
        self.norms = torch.nn.ModuleList(torch.nn.InstanceNorm2d(width, affine=True) for _ in range(depth))
        self.head = torch.nn.Linear(width * (side // 2**depth) ** 2, classes)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.avg_pool2d(torch.relu(norm(conv(x))), 2)
        return self.head(x.flatten(1))


def case_of(sizes, precision="float32", dtype=torch.float64):
    channels, side, classes, width, depth = sizes
    draw = torch.Generator().manual_seed(0)
    options = {"width": width, "depth": depth, "precision": precision}
    network = nets.build("convnet", channels=channels, resolution=side, classes=classes, **options)
    theta = network.init(draw, dtype)
    theta += 0.1 * torch.randn(theta.shape, generator=draw, dtype=dtype)
    images = torch.randn(4, channels, side, side, generator=draw, dtype=dtype)
    # Not quite probabilities: derivatives in labels leave the simplex.
    labels = torch.rand(4, classes, generator=draw, dtype=dtype)
    return network, theta, images, labels, torch.randn(theta.shape, generator=draw, dtype=dtype)


def slowly(sizes, theta, images, labels, direction):
    """Gradient, and derivatives of its product with the direction in θ, images and labels."""
    slow, leaves = Slow(*sizes).to(theta.dtype), [x.clone().requires_grad_() for x in (theta, images, labels)]
    shapes = {key: value.shape for key, value in slow.named_parameters()}
    pieces = torch.split(leaves[0], [shape.numel() for shape in shapes.values()])
    named = {key: piece.view(shape) for (key, shape), piece in zip(shapes.items(), pieces, strict=True)}
    loss = -(leaves[2] * functional_call(slow, named, (leaves[1],)).log_softmax(1)).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    return gradient.detach(), torch.autograd.grad(gradient @ direction, leaves)


@pytest.mark.parametrize("sizes", [*CASES, WIDE], ids=str)
def test_gradient_and_derivatives_are_autograds(sizes):
    network, *given, direction = case_of(sizes)
    found = loss_gradient(network, *given, keep=True)
    gradient, along = slowly(sizes, *given, direction)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(found.along(direction), along, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", CASES[:2], ids=str)
def test_images_in_another_order_of_memory_give_the_same(sizes):
    network, theta, images, labels, direction = case_of(sizes)
    n, channels, height, width = images.shape
    last = images.permute(0, 2, 3, 1).reshape(-1).view(n, height, width, channels).permute(0, 3, 1, 2)
    one, other = (loss_gradient(network, theta, x, labels, keep=True) for x in (images, last))
    assert torch.equal(one.gradient, other.gradient)
    for mine, theirs in zip(one.along(direction), other.along(direction), strict=True):
        assert torch.equal(mine, theirs)


def test_without_theta_the_rest_is_the_same():
    network, *given, direction = case_of(CASES[1])
    whole, part = (loss_gradient(network, *given, keep=True).along(direction, in_theta=want) for want in (True, False))
    assert part.theta is None
    assert torch.equal(part.images, whole.images)
    assert torch.equal(part.labels, whole.labels)


def test_nothing_is_kept_unless_asked():
    network, *given, _ = case_of(CASES[0])
    assert loss_gradient(network, *given, keep=False).kept_bytes == 0
    kept = loss_gradient(network, *given, keep=True).kept_bytes
    # Of the first block: its input, which pixels pass, and a gradient of a quarter of its maps. But not these: they and
    # their gradient would be more than all that is kept.
    images, maps = 4 * 28 * 28, 4 * 6 * 28 * 28
    assert 8 * images + maps + 8 * maps / 4 < kept < 8 * 2 * maps


def test_autograd_can_differentiate_it_in_the_images():
    network, theta, images, labels, direction = case_of(CASES[1])
    leaf = images.requires_grad_()
    (found,) = torch.autograd.grad(gradient_in_images(network, theta, leaf, labels).sin() @ direction, leaf)
    gradient, _ = slowly(CASES[1], theta, images.detach(), labels, direction)
    expected = slowly(CASES[1], theta, images.detach(), labels, gradient.cos() * direction)[1][1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_half_precision_of_convolutions_stays_near():
    sizes = (3, 16, 5, 16, 2)
    network, *given, direction = case_of(sizes, "bfloat16", torch.float32)
    found = loss_gradient(network, *given, keep=True)
    gradient, along = slowly(sizes, *given, direction)
    pairs = [(found.gradient, gradient), *zip(found.along(direction), along, strict=True)]
    for mine, theirs in pairs:
        assert mine.dtype == torch.float32
        cosine = F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)
        assert 0.98 < cosine < 1 - 1e-9
