"""What compiled loops are worth: an inner step with its way back, and a training step, with and without them.

    python -m benchmarks.passes

On one thread, as workers have, and on two. Ours takes turns with the framework's passes in place of the compiled ones,
with every convolution a direct one, and with the first block's maps in memory rather than in the cache; how many times
as fast it is as each of those.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.machine import fastest
from benchmarks.turns import in_turns
from ptm_ray.core import nets
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.nets import by_hand, convolutions, passes
from ptm_ray.core.seeds import Seeds
from ptm_ray.stages.memory import keep_memory

#: Width, channels, pixels a side, images.
CASES = ((32, 3, 32, 64), (32, 1, 28, 20), (32, 1, 28, 2), (64, 1, 28, 20), (128, 1, 28, 20), (128, 3, 32, 90))
CLASSES = 9
#: What ours does without.
WITHOUT: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "compiled passes": lambda: mock.patch.object(by_hand, "passes_for", return_value=passes),
    "tiles": lambda: mock.patch.object(convolutions, "_winograd", return_value=None),
    "first block in the cache": lambda: mock.patch.object(by_hand, "_fused", return_value=None),
}


def seconds(run: Callable[[], Any], there: Callable[[], AbstractContextManager[Any]]) -> float:
    """Of the quickest of several runs there."""
    with there():
        return fastest(run)


def ratios(run: Callable[[], Any]) -> dict[str, float]:
    """How many times as fast it is as without each."""
    taken = in_turns({way: partial(seconds, run, there) for way, there in {"ours": nullcontext, **WITHOUT}.items()})
    return {way: taken[way] / taken["ours"] for way in WITHOUT}


def steps(width: int, channels: int, resolution: int, images: int) -> dict[str, Callable[[], Any]]:
    """Those that are measured."""
    draw = Seeds(0).stream("passes benchmark")
    network = nets.build("convnet", channels=channels, resolution=resolution, classes=CLASSES, width=width, depth=3)
    theta = network.init(draw)
    shown = torch.randn(images, channels, resolution, resolution, generator=draw)
    given = network, theta, shown, torch.rand(images, CLASSES, generator=draw).softmax(1)
    direction = torch.randn(theta.shape, generator=draw)
    return {
        "inner step and its way back": lambda: loss_gradient(*given, keep=True).along(direction),
        "training step": lambda: loss_gradient(*given, keep=False),
    }


def main() -> None:
    keep_memory()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for case in CASES:
            width, channels, resolution, images = case
            print(f"threads {threads}, width {width}, {images} images of {resolution}×{resolution}×{channels}:")
            for what, run in steps(*case).items():
                worth = ", ".join(f"{way} {ratio:.2f}×" for way, ratio in ratios(run).items())
                print(f"    {what}: {worth}", flush=True)


if __name__ == "__main__":
    main()
