"""The block of images in the cache, against the same block of maps in memory, which is checked against autograd."""

import pytest
import torch

from ptm_ray.core.nets import by_hand, first_block
from ptm_ray.core.nets.first_block import FirstBlock
from ptm_ray.core.nets.passes import Scale

#: Images, channels, pixels a side, maps; with a last row and column that no block of pooling covers, too.
CASES = [(3, 1, 28, 6), (5, 3, 16, 20), (2, 2, 9, 5), (4, 3, 7, 16)]


def numbers(count, channels, side, maps, dtype=torch.float64):
    """Images, kernel, scale; what comes from above; a direction of each. Images are far from zero."""
    draw = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)

    images, kernel, along = normal(count, channels, side, side) + 3, *(normal(maps, channels, 3, 3) for _ in range(2))
    scale, dot_scale = (Scale(1 + normal(maps), normal(maps)) for _ in range(2))
    grad, dot_grad = (normal(count, maps, side // 2, side // 2) for _ in range(2))
    return images, kernel, scale, grad, along, dot_scale, dot_grad


def found(make, images, kernel, scale, grad, along, dot_scale, dot_grad):
    """All that a block gives."""
    block = make(images, kernel, scale)
    pooled = block.forward(1e-5)
    _, of_kernel, of_scale = block.gradient(grad, True)
    moved = block.move(None, along, dot_scale)
    of_images, dot_of_kernel, dot_of_scale = block.gradient_moved(dot_grad, True)
    return pooled, of_kernel, *of_scale, moved, of_images, dot_of_kernel, *dot_of_scale


def in_memory(images, kernel, scale):
    return by_hand._Block(images, kernel, scale, half=False, first=True)


def errors(values, exact):
    return [float((a - b).norm() / b.norm()) for a, b in zip(values, exact, strict=True)]


@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("at_once", [1, 2**17], ids=["one image at a time", "all at once"])
def test_it_gives_what_the_block_in_memory_gives(sizes, at_once, monkeypatch):
    monkeypatch.setattr(first_block, "AT_ONCE", at_once)
    given = numbers(*sizes)
    for mine, theirs in zip(found(FirstBlock, *given), found(in_memory, *given), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_it_loses_no_more_to_rounding():
    sizes = (8, 3, 28, 32)
    exact = found(in_memory, *numbers(*sizes))
    given = numbers(*sizes, torch.float32)
    mine, theirs = (errors(found(make, *given), exact) for make in (FirstBlock, in_memory))
    assert max(mine) < 1e-6
    assert max(mine) < max(theirs)


def test_the_number_of_threads_changes_no_bit():
    # Enough pixels for two threads.
    given, before, ways = numbers(8, 3, 32, 16, torch.float32), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ways.append(found(FirstBlock, *given))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*ways, strict=True))


def test_an_image_of_one_colour_has_flat_maps():
    """But at its rim, beyond which lie zeros."""
    images, *rest = numbers(*CASES[0])
    flat = torch.full_like(images, 2.0)
    for mine, theirs in zip(found(FirstBlock, flat, *rest), found(in_memory, flat, *rest), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_student_that_diverged_is_seen_to():
    images, kernel, scale, *_ = numbers(*CASES[0])
    for bad in (float("nan"), float("inf")):
        assert FirstBlock(images, torch.full_like(kernel, bad), scale).forward(1e-5).isnan().all()


def test_it_keeps_no_map():
    images, kernel, scale, grad, *_ = numbers(4, 1, 28, 32, torch.float32)
    block = FirstBlock(images, kernel, scale)
    block.forward(1e-5)
    block.gradient(grad, True)
    numbers_of_all_maps = 4 * 32 * 28 * 28
    # Whether each pixel passes, and a gradient of a quarter as many numbers; what was summed up is little.
    assert 2 * numbers_of_all_maps < block.kept_bytes < 2.3 * numbers_of_all_maps
