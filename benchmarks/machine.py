"""What this machine can do at most: the rates that all others are fractions of."""

import time
from collections.abc import Callable
from typing import Any

#: Images, and pixels a side, of the convolution: the middle one of the network, which has most of its work.
IMAGES, SIDE = 90, 16
#: Rows and columns of the matrices.
ROWS = 2048
TRIES = 20


def rates(width: int) -> dict[str, float]:
    """Floating-point operations a second, on all threads, memory kept: the best of several tries each."""
    import torch
    from torch.nn import functional as F

    from ptm_ray.stages.memory import keep_memory

    keep_memory()
    found = {}
    for name in precisions():
        dtype = getattr(torch, name)
        a, b = (torch.randn(ROWS, ROWS, dtype=dtype) for _ in range(2))
        found[f"matrix product, {name}"] = 2 * ROWS**3 / fastest(lambda a=a, b=b: a @ b)
        x, kernel = torch.randn(IMAGES, width, SIDE, SIDE).to(dtype), torch.randn(width, width, 3, 3).to(dtype)
        flops = 2 * 9 * width * width * SIDE * SIDE * IMAGES
        found[f"convolution, {name}"] = flops / fastest(lambda x=x, kernel=kernel: F.conv2d(x, kernel, padding=1))
    return found


def precisions() -> tuple[str, ...]:
    """Those that are worth measuring: without instructions for bfloat16 it takes many times as long."""
    import torch

    return ("float32", "bfloat16") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("float32",)


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the quickest of several runs."""
    taken = []
    for _ in range(TRIES):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return min(taken)


def forward_flops(shape: tuple[int, int, int], width: int) -> float:
    """Of one image of (channels, pixels a side, classes): two for every multiplication in three blocks and head."""
    channels, side, classes = shape
    flops = 0.0
    for block in range(3):
        flops += 2 * 9 * (width if block else channels) * width * side * side
        side //= 2
    return flops + 2 * width * side * side * classes
