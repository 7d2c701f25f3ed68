"""Average pooling and its derivatives against the framework's."""

import pytest
import torch
from torch.nn import functional as F

from ptm_ray.core.nets.pooling import avg_pool


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (7, 4), (3, 2)])
def test_values_and_both_derivatives_are_the_frameworks(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)

    def derivatives(pool):
        y = pool(x)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return y, first, second

    expected = derivatives(lambda images: F.avg_pool2d(images, 2))
    for ours, theirs in zip(derivatives(avg_pool), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_derivatives_hold_by_finite_differences():
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: avg_pool(images).sin(), x)
    assert torch.autograd.gradgradcheck(lambda images: avg_pool(images).sin(), x)
