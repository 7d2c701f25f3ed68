"""Convolutions by tiles, and their gradients, against the direct ones."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from ptm_ray.core import nets
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.nets import convolutions
from ptm_ray.core.nets.convolutions import Convolution, Term, convolved, inner_convolution
from ptm_ray.core.nets.winograd import MAPS, TILES, WinogradConvolution

#: Images, maps given, maps that result, height and width: tiles that fit, that don't, and single ones; several parts.
CASES = [(3, 16, 32, 16, 16), (2, 32, 16, 14, 7), (1, 16, 16, 3, 9), (2, 16, 16, 1, 1), (9, 128, 64, 16, 16)]


def terms_of(case, dtype, count):
    images, given, results, height, width = case
    draw = torch.Generator().manual_seed(0)
    shapes = (images, results, height, width), (images, given, height, width), (results, given, 3, 3)
    return [Term(*(torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients_are_those_of_a_direct_convolution(case, count):
    terms = terms_of(case, torch.float64, count)
    fast, slow, pairs = WinogradConvolution(), Convolution(half=False), [(term.x, term.kernel) for term in terms]
    torch.testing.assert_close(fast.results(pairs), slow.results(pairs), rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(fast.back(terms, (True, True)), slow.back(terms, (True, True)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-9)


def test_what_is_not_wanted_is_not_there():
    (term,) = terms_of(CASES[1], torch.float64, 1)
    whole = WinogradConvolution().back([term], (True, True))
    of_x, nothing = WinogradConvolution().back([term], (True, False))
    assert nothing is None
    assert torch.equal(of_x, whole[0])
    nothing, of_kernel = WinogradConvolution().back([term], (False, True))
    assert nothing is None
    assert torch.equal(of_kernel, whole[1])


def test_in_single_precision_rounding_stays_near_that_of_a_direct_sum():
    (exact,) = terms_of(CASES[-1], torch.float64, 1)
    single = Term(*(part.float() for part in exact))
    slow = Convolution(half=False)
    expected = slow.results([exact[1:]]), *slow.back([exact], (True, True))
    fast = WinogradConvolution()
    found = fast.results([single[1:]]), *fast.back([single], (True, True))
    for mine, true in zip(found, expected, strict=True):
        assert (mine - true).norm() < 2e-6 * true.norm()


def test_what_is_not_finite_is_seen_to():
    (term,) = terms_of(CASES[0], torch.float32, 1)
    term.x[1, 3, 5, 6] = torch.inf
    found = WinogradConvolution().results([term[1:]])
    assert not found[1].isfinite().all()
    assert found[0].isfinite().all()


def test_maps_in_any_order_of_memory():
    (term,) = terms_of(CASES[0], torch.float64, 1)
    other = Term(*(part.to(memory_format=torch.channels_last) for part in term))
    fast = WinogradConvolution()
    assert torch.equal(fast.results([term[1:]]), fast.results([other[1:]]))
    for mine, theirs in zip(fast.back([term], (True, True)), fast.back([other], (True, True)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_share_the_images(two_threads):
    (term,) = terms_of(CASES[-1], torch.float64, 1)
    fast, slow = WinogradConvolution(), Convolution(half=False)
    torch.testing.assert_close(fast.results([term[1:]]), slow.results([term[1:]]), rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(fast.back([term], (True, True)), slow.back([term], (True, True)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-9)


def test_two_threads_need_twice_the_tiles(two_threads):
    kernel = torch.zeros(MAPS, MAPS, 3, 3)
    chosen = [inner_convolution(torch.zeros(n, MAPS, 4, 4), kernel, False, False) for n in (2 * TILES - 1, 2 * TILES)]
    assert [isinstance(one, WinogradConvolution) for one in chosen] == [False, True]


@pytest.mark.parametrize(
    ("images", "given", "results", "half", "by_tiles"),
    [
        (TILES, MAPS, MAPS, False, True),
        (TILES - 1, MAPS, MAPS, False, False),
        (TILES, MAPS - 16, MAPS, False, False),
        (TILES, MAPS + 1, MAPS, False, False),
        (TILES, MAPS, MAPS, True, False),
        (64, 256, 256, False, True),
        (63, 256, 256, False, False),
    ],
)
def test_chosen_where_it_can_be_and_pays(images, given, results, half, by_tiles):
    maps, kernel = torch.zeros(images, given, 4, 4), torch.zeros(results, given, 3, 3)
    assert isinstance(inner_convolution(maps, kernel, half, any_maps=False), WinogradConvolution) == by_tiles


def test_the_frameworks_own_convolution_is_what_both_compute():
    (term,) = terms_of(CASES[0], torch.float64, 1)
    expected = F.conv2d(term.x, term.kernel, padding=1)
    torch.testing.assert_close(WinogradConvolution().results([term[1:]]), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, MAPS, dtype=torch.float64)], ids=["plain", "bias"])
def test_autograd_differentiates_it_any_number_of_times(bias):
    (term,) = terms_of((TILES, MAPS, MAPS, 3, 3), torch.float64, 1)

    def derivatives(convolve):
        leaves = [part.clone().requires_grad_() for part in term[1:]]
        value = convolve(*leaves, bias).sin().sum()
        found = []
        for _ in range(3):
            found += torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(one.sin().sum() for one in found[-2:])
        return found

    found = derivatives(convolved)
    expected = derivatives(lambda x, kernel, shift: F.conv2d(x, kernel, shift, padding=1))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item())


@pytest.mark.parametrize("name", ["convnet", "resnet18", "vgg11"])
def test_networks_give_what_they_give_directly(name, monkeypatch):
    network = nets.build(name, channels=1, resolution=16, classes=2)
    draw = torch.Generator().manual_seed(0)
    theta = network.init(draw, torch.float64)
    images, labels = torch.randn(TILES, 1, 16, 16, generator=draw).double(), torch.eye(2).double().repeat(TILES // 2, 1)

    def given():
        return network.logits(theta, images), loss_gradient(network, theta, images, labels, keep=False).gradient

    by_tiles = given()
    monkeypatch.setattr(convolutions, "_winograd", lambda: None)
    for mine, theirs in zip(by_tiles, given(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
        assert not torch.equal(mine, theirs)


def test_without_numba_all_convolutions_are_direct():
    code = f"""
import sys
sys.modules["numba"] = None
import torch
from ptm_ray.core.nets.convolutions import Convolution, inner_convolution
maps, kernel = torch.zeros({4 * TILES}, {MAPS}, 4, 4), torch.zeros({MAPS}, {MAPS}, 3, 3)
print(type(inner_convolution(maps, kernel, half=False, any_maps=False)) is Convolution)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
