"""Compiled passes beside the framework's: an inner step with its way back, and a training step, in turns.

    python -m benchmarks.passes

On one thread, as workers have, and on two. How many times as fast the compiled ones are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.machine import fastest
from benchmarks.turns import in_turns
from ptm_ray.core import nets
from ptm_ray.core.gradient import loss_gradient
from ptm_ray.core.nets import by_hand, compiled_passes, passes
from ptm_ray.core.seeds import Seeds
from ptm_ray.stages.memory import keep_memory

#: Width, channels, pixels a side, images.
CASES = ((32, 3, 32, 64), (32, 1, 28, 20), (32, 1, 28, 2), (128, 1, 28, 20), (128, 3, 32, 90))
CLASSES = 9


def seconds(run: Callable[[], Any], used: Any) -> float:
    """Of the quickest of several runs by these passes."""
    with mock.patch.object(by_hand, "passes_for", return_value=used):
        return fastest(run)


def ratios(width: int, channels: int, resolution: int, images: int) -> list[float]:
    """Times as fast: an inner step with its way back, and a training step."""
    draw = Seeds(0).stream("passes benchmark")
    network = nets.build("convnet", channels=channels, resolution=resolution, classes=CLASSES, width=width, depth=3)
    theta = network.init(draw)
    shown = torch.randn(images, channels, resolution, resolution, generator=draw)
    given = network, theta, shown, torch.rand(images, CLASSES, generator=draw).softmax(1)
    direction = torch.randn(theta.shape, generator=draw)
    kinds: list[Callable[[], Any]] = [
        lambda: loss_gradient(*given, keep=True).along(direction),
        lambda: loss_gradient(*given, keep=False),
    ]
    found = []
    for run in kinds:
        ways = {used: partial(seconds, run, used) for used in (passes, compiled_passes)}
        taken = in_turns({used.__name__: way for used, way in ways.items()})
        found.append(taken[passes.__name__] / taken[compiled_passes.__name__])
    return found


def main() -> None:
    keep_memory()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for case in CASES:
            step, training = ratios(*case)
            width, channels, resolution, images = case
            print(
                f"threads {threads}, width {width}, {images} images of {resolution}×{resolution}×{channels}: "
                f"inner step and its way back {step:.2f}×, training step {training:.2f}×"
            )


if __name__ == "__main__":
    main()
