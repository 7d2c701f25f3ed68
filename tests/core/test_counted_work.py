"""What a matching step computes, counted rather than timed: the guard against a slower formula.

Convolutions are counted in floating-point operations, by torch's own counter and where numpy multiplies matrices, and
set against one forward pass through the same images. The rest, which on small sets takes as long, is counted as calls
into the framework.
"""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ptm_ray.core import nets
from ptm_ray.core.nets import blocks, by_hand, compiled_passes, passes
from ptm_ray.core.nets.tiles import POINTS
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import from_noise, inner_batches
from ptm_ray.core.unroll import Plan, matching_gradients, roll_out

CHANNELS, RESOLUTION, CLASSES, IPC = 3, 32, 4, 2


class Most(NamedTuple):
    """What an inner step may take, with its way back. Lower it when a change needs less.

    In forward passes: its gradient is 3, the way back through it 6 more, and 3 again where nothing was kept. The first
    layer needs no gradient of its input while the student rolls, and none of its input's movement on the way back; in
    the cache, it has a product with what its pixels see instead. And calls into the framework.
    """

    stored: float
    recomputed: float
    calls: int


#: By the passes between convolutions. The framework's pooling is a product and counts as work, of the forward pass too;
#: beside the calls of the compiled ones there are twelve of theirs.
MOST = {compiled_passes: Most(8.54, 11.16, 88), passes: Most(7.3, 9.8, 282)}


def is_view(func):
    """Whether a call only looks at memory in another way."""
    return any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)


class Counted(TorchDispatchMode):
    """Counts the calls that reach the framework's kernels and compute, and operations of convolutions and products."""

    def __init__(self):
        super().__init__()
        self.calls, self.flops = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += not is_view(func)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def counted_products(counts=lambda left: True):
    """A list of one number, in which operations of numpy's products add up; of those whose left factor counts."""
    total, product = [0], np.matmul

    def counting(left, right, out=None):
        found = product(left, right, out=out)
        total[0] += 2 * found.size * left.shape[-1] if counts(left) else 0
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", counting)
        yield total


def flops(run):
    with Counted() as counted, counted_products() as products:
        run()
    return counted.flops + products[0]


class Work:
    """A small matching problem without augmentation, and what solving it takes."""

    def __init__(self, width=16, ipc=IPC):
        draw = Seeds(0).stream("counted work")
        self.network = nets.build(
            "convnet", channels=CHANNELS, resolution=RESOLUTION, classes=CLASSES, width=width, depth=3
        )
        self.start = self.network.init(draw)
        self.target = self.start + 0.01 * torch.randn(self.start.shape, generator=draw)
        self.set = from_noise((CHANNELS, RESOLUTION, RESOLUTION), CLASSES, ipc, 0.01, draw)
        self.draw = draw

    def batches(self, steps):
        return inner_batches(len(self.set.images), 32, steps, (), self.draw)

    def match(self, steps, plan):
        now = self.set
        batches = self.batches(steps)
        matching_gradients(
            self.network, self.start, self.target, now.images, now.labels(), now.log_lr, batches, plan=plan
        )

    def forward_flops(self):
        with torch.no_grad():
            return flops(lambda: self.network.logits(self.start, self.set.images))


@pytest.fixture(scope="module", params=MOST, ids=["compiled", "framework"])
def used(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_compiled", lambda _: request.param)
        if request.param is passes:
            patch.setattr(by_hand, "_fused", lambda _: None)
        yield request.param


@pytest.fixture(scope="module")
def work(used):
    work = Work()
    # What is made once and kept is made now.
    work.match(1, Plan(1, 1))
    return work


def per_step(measure):
    """The slope of what `measure(steps)` counts, and that it is a straight line."""
    four, eight, twelve = measure(4), measure(8), measure(12)
    assert twelve - eight == eight - four
    return (eight - four) / 4


@pytest.mark.parametrize(("keep", "most"), [(12, "stored"), (0, "recomputed")])
def test_a_matching_step_convolves_no_more_than_an_exact_gradient_must(used, work, keep, most):
    counted = per_step(lambda steps: flops(lambda: work.match(steps, Plan(keep, 1))))
    assert counted <= getattr(MOST[used], most) * work.forward_flops()


def test_rolling_forward_costs_three_passes_a_step(work):
    def roll(steps):
        now = work.set
        return lambda: roll_out(work.network, work.start, now.images, now.labels(), 0.01, work.batches(steps))

    assert per_step(lambda steps: flops(roll(steps))) <= 3 * work.forward_flops()


def test_calls_into_the_framework_grow_with_the_steps_alone(used, work):
    def calls(steps):
        with Counted() as counted:
            work.match(steps, Plan(steps, 1))
        return counted.calls

    assert per_step(calls) <= MOST[used].calls


def test_the_counter_sees_what_a_plain_unrolling_takes(work):
    """Full unrolling does the same convolutions: the counter would notice if ours did more.

    In the cache, it does a product with what the images' pixels see instead of reading maps: 28 rows beside 16 maps.
    """
    now, labels = work.set, work.set.labels()

    def unrolled(steps):
        def run():
            images, theta = now.images.clone().requires_grad_(), work.start.clone().requires_grad_()
            for _ in range(steps):
                loss = F.cross_entropy(work.network.logits(theta, images), labels)
                (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
                theta = theta - 0.01 * gradient
            torch.autograd.grad((theta - work.target).square().sum(), images)

        return run

    plain = per_step(lambda steps: flops(unrolled(steps)))
    ours = per_step(lambda steps: flops(lambda: work.match(steps, Plan(steps, 1))))
    assert 6 * work.forward_flops() < ours <= 1.09 * plain


def test_by_tiles_inner_convolutions_take_a_quarter_of_the_direct_work():
    """Maps of 16 and 8 pixels are cut into tiles without a remainder."""
    work = Work(width=64, ipc=4)

    def products(steps):
        with counted_products(lambda left: len(left) == POINTS) as counted:
            work.match(steps, Plan(steps, 1))
        return counted[0]

    direct = 2 * 9 * 64 * 64 * (16 * 16 + 8 * 8) * len(work.set.images)
    assert per_step(products) == 9 * direct / 4
