"""Pooling, and norm → ReLU → pooling as one: values and derivatives against the framework's, in float64.

All of it thrice: by passes that are compiled, by those of a GPU, and by the framework's kernels.
"""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from ptm_ray.core.nets import blocks, compiled_passes, passes, triton_passes
from ptm_ray.core.nets.blocks import avg_pool, norm_relu_pool
from ptm_ray.core.nets.passes import Scale
from tests.reference.blocks import slow_block

#: The last two are wider than what is pooled by a product.
SIZES = [(8, 8), (7, 7), (7, 4), (3, 2), (4, 66), (3, 67)]


@pytest.fixture(autouse=True, params=[compiled_passes, triton_passes, passes], ids=["compiled", "gpu", "framework"])
def used(request, monkeypatch):
    monkeypatch.setattr(blocks, "_compiled", lambda _: request.param)
    return request.param


def draw(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


def derivatives(function, leaves):
    """The value, its gradients, and the gradients of a function that depends on each of these in its own way."""
    value = function(*leaves)
    first = torch.autograd.grad(value.sin().sum(), leaves, create_graph=True)
    weights = [torch.cos(torch.arange(grad.numel(), dtype=grad.dtype)).view_as(grad) for grad in first]
    mixed = sum((weight * grad + grad.square()).sum() for weight, grad in zip(weights, first, strict=True))
    return [value, *first, *torch.autograd.grad(mixed, leaves)]


def same(ours, theirs):
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_average_pooling_is_the_frameworks(size):
    x = draw(2, 3, *size)
    same(derivatives(avg_pool, [x]), derivatives(lambda images: F.avg_pool2d(images, 2), [x]))


@pytest.mark.parametrize("size", SIZES)
def test_norm_relu_pool_and_both_derivatives_are_those_of_its_formula(size):
    leaves = [draw(3, 4, *size), draw(4, seed=1), draw(4, seed=2)]
    same(derivatives(norm_relu_pool, leaves), derivatives(slow_block, leaves))


def test_derivatives_do_not_depend_on_the_order_of_maps_in_memory():
    last = draw(3, 4, 8, 8).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    leaves = [last, draw(4, seed=1), draw(4, seed=2)]
    same(derivatives(norm_relu_pool, leaves), derivatives(slow_block, leaves))


def test_the_scale_and_shift_of_maps_far_from_zero_hold_too():
    x = (5 + 0.01 * draw(2, 3, 6, 6).detach()).requires_grad_()
    leaves = [x, draw(3, seed=1), draw(3, seed=2)]
    for mine, expected in zip(derivatives(norm_relu_pool, leaves), derivatives(slow_block, leaves), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-8 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("used", [compiled_passes, passes], indirect=True)
def test_the_derivatives_hold_by_finite_differences():
    x, weight, bias = draw(1, 2, 5, 4), draw(2, seed=1), draw(2, seed=2)
    for function, leaves in ((avg_pool, (x,)), (norm_relu_pool, (x, weight, bias))):
        assert torch.autograd.gradcheck(lambda *inputs, f=function: f(*inputs).sin(), leaves)
        assert torch.autograd.gradgradcheck(lambda *inputs, f=function: f(*inputs).sin(), leaves)


def test_a_third_derivative_is_refused_rather_than_wrong():
    x, weight, bias = draw(1, 2, 4, 4), draw(2, seed=1), draw(2, seed=2)
    (first,) = torch.autograd.grad(norm_relu_pool(x, weight, bias).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice, not three times"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def all_four(used, x, scale):
    """Everything that passes compute, of drawn gradients and movements."""
    draws = torch.Generator().manual_seed(3)
    (dot, pooled, dot_pooled), along = (
        [torch.randn(shape, generator=draws, dtype=torch.float64).to(x.dtype) for shape in shapes]
        for shapes in ([x.shape, *[(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)] * 2], [scale[0].shape] * 2)
    )
    value, stats = used.forward(x, scale, 1e-5)
    moved = used.move(dot, x, Scale(*along), stats)
    last = used.gradient_moved((pooled, dot_pooled), x, (scale, Scale(*along)), stats, moved)
    return [value, *stats, *used.gradient(pooled, x, scale, stats), *moved, *last]


def case(*size, dtype=torch.float32):
    x, weight, bias = (draw(*shape).detach().to(dtype) for shape in (size, size[1:2], size[1:2]))
    return x, Scale(weight, bias)


@pytest.mark.parametrize("used", [compiled_passes, passes], indirect=True)
def test_the_number_of_threads_changes_no_bit(used):
    # Enough pixels for two threads.
    given, before = case(8, 16, 32, 32), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(all_four(used, *given))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_handed_on(used, wrong):
    x, scale = case(2, 3, 6, 6)
    x[1, 2, 0, 0] = wrong
    ours, theirs = all_four(used, x, scale), all_four(passes, x, scale)
    assert not theirs[0].isfinite().all()
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine.isfinite(), expected.isfinite())


def test_single_precision_is_as_near_to_double_as_it_can_be(used):
    ours = all_four(used, *case(4, 5, 14, 14))
    theirs = all_four(passes, *case(4, 5, 14, 14, dtype=torch.float64))
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine - expected).abs().max() < 2e-5 * expected.abs().max()


def test_without_numba_the_frameworks_kernels_are_used():
    code = """
import sys
sys.modules["numba"] = None
import torch
from ptm_ray.core.nets import blocks, passes
print(blocks.passes_for(torch.zeros(1)) is passes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
