"""Seconds of a matching step, ours and the published way's. `python -m benchmarks.speed` asks for them.

Every way runs in a process of its own, and their measurements take turns, so that whatever else the
machine does falls on all of them. The plain way runs as it was published: its own threads, no allocator settings;
`plain-kept` is the same with those of ours, which says what they alone are worth. Ours runs as a worker runs it, but
with as many threads, so that cores are not what is compared. Ratios are of medians.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.machine import forward_flops, precisions
from benchmarks.memory import peak_mib
from benchmarks.turns import OPS, PLAIN, PLAIN_KEPT, WIDTH, in_turns

WAYS = (PLAIN, "stored", "recompute", "bfloat16")
#: Of images and student steps, the product up to which all ways' memory fits into 24 GB together; beyond it, a process
#: ends before the next begins.
TOGETHER = 2000


@dataclass(frozen=True)
class Case:
    """A synthetic set and a number of student steps that each see all of it."""

    images: int
    steps: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, pixels a side, classes."""
        return (3, 32, 9) if self.images >= 90 else (1, 28, 2)

    def counted_flops(self) -> float:
        """The least that an exact gradient takes: a step's gradient is 3 forward passes, its derivative 6 more."""
        return 9 * self.steps * self.images * forward_flops(self.shape, WIDTH)


class Measured:
    """What one process measures: a way on a case. `before_mib`: its peak resident set before any step."""

    def __init__(self, way: str, case: Case) -> None:
        import torch

        from benchmarks.plain import PlainConvNet, plain_step
        from ptm_ray.core import nets
        from ptm_ray.core.seeds import Seeds
        from ptm_ray.core.synthetic import from_noise, inner_batches
        from ptm_ray.core.unroll import RECOMPUTE, matching_gradients, plan_for

        channels, resolution, classes = case.shape
        draw = Seeds(0).stream("speed benchmark")
        made = from_noise((channels, resolution, resolution), classes, case.images // classes, 0.01, draw)
        batches = inner_batches(len(made.images), case.images, case.steps, OPS, draw)
        if way in (PLAIN, PLAIN_KEPT):
            net = PlainConvNet(channels, resolution, classes, WIDTH)
            start = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
            target = start + 0.01 * torch.randn(start.shape, generator=draw)
            self.before_mib = peak_mib()
            self.step = lambda: plain_step(net, start, target, made.images, made.classes, torch.tensor(0.01), batches)
            return
        precision = "bfloat16" if way == "bfloat16" else "float32"
        sizes = {"channels": channels, "resolution": resolution, "classes": classes, "width": WIDTH, "depth": 3}
        network = nets.build("convnet", **sizes, precision=precision)
        start = network.init(draw)
        target = start + 0.01 * torch.randn(start.shape, generator=draw)
        labels = made.labels()
        # A plan is found by a step.
        self.before_mib = peak_mib()
        plan = RECOMPUTE
        if way != "recompute":
            plan = plan_for(20 * 2**30, network, start, made.images, labels, batches)
        self.step = lambda: matching_gradients(
            network, start, target, made.images, labels, made.log_lr, batches, plan=plan
        )


def work(way: str, case: Case) -> None:
    """The process: for every line that it reads, seconds, peak resident set in MiB so far, and before any step."""
    import time

    from ptm_ray.stages.memory import keep_memory

    if way != PLAIN:
        keep_memory()

    measured = Measured(way, case)
    for _ in sys.stdin:
        started = time.perf_counter()
        measured.step()
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, peak_mib(), measured.before_mib]), flush=True)


class Runner:
    """A process that measures one way of one case whenever it is asked."""

    def __init__(self, way: str, case: Case) -> None:
        words = [sys.executable, "-m", "benchmarks.matching_step", way, json.dumps(asdict(case))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> tuple[float, float, float]:
        """Seconds, and MiB at the most: so far, and before the first step."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        to.write("again\n")
        to.flush()
        seconds, peak, before = json.loads(back.readline())
        return seconds, peak, before

    def stop(self) -> None:
        self._process.communicate()


def compare(case: Case, more: Sequence[str] = ()) -> dict[str, Any]:
    """Medians of all ways and of `more`, measured in turns, after a step of each that only warms up."""
    together = case.images * case.steps <= TOGETHER
    ways = [way for way in (*WAYS, *more) if way != "bfloat16" or way in precisions()]
    lasting = {way: Runner(way, case) for way in ways} if together else {}
    memory, before = {}, {}
    for runner in lasting.values():
        runner.ask()

    def measured(way: str) -> float:
        runner = lasting.get(way) or Runner(way, case)
        if not together:
            runner.ask()
        seconds, memory[way], before[way] = runner.ask()
        if not together:
            runner.stop()
        return seconds

    seconds = in_turns({way: partial(measured, way) for way in ways})
    for runner in lasting.values():
        runner.stop()
    return {
        "what": f"matching step, {case.images} images, {case.steps} student steps",
        "seconds": seconds,
        "flops": case.counted_flops(),
        "peak_mib": memory,
        "before_mib": before,
    }


if __name__ == "__main__":
    work(sys.argv[1], Case(**json.loads(sys.argv[2])))
