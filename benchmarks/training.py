"""Seconds of experts and of evaluation on the whole machine. `python -m benchmarks.speed` asks for them.

The published loop (MTT, from its description) trains one network at a time in one process with the framework's own
threads and layers, images coming from a DataLoader. Ours trains experts as workers do: a process of one thread on every
core, images resident, memory kept. It evaluates as `ptm-ray evaluate` does, by workers that are there already, and to
the metrics. Both train the ConvNet of width 128 with the same batches and augmentation, and their measurements take
turns. Ratios are of medians.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

from benchmarks.machine import forward_flops, precisions
from benchmarks.turns import OPS, PLAIN, PLAIN_KEPT, WIDTH, in_turns

#: Of an expert's loop: steps that are timed, images a step.
EXPERT_STEPS, EXPERT_BATCH = 6, 128
#: Of an evaluation: networks, update steps of each (a fifth of the usual), images that they then classify.
NETWORKS, EVALUATION_STEPS, SCORED = 5, 60, 600
#: Images of an evaluated set, as at ten per class: (channels, pixels, classes).
SHAPES = {20: (1, 28, 2), 90: (3, 32, 9)}


def shape_of(task: str) -> tuple[int, int, int]:
    """Of a task's images."""
    return SHAPES[20] if task == "experts" else SHAPES[int(task)]


def images_of(count: int, shape: tuple[int, int, int]) -> Any:
    """Random images and labels, the same for everybody."""
    import torch

    channels, side, classes = shape
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, side, side, generator=draw), torch.arange(count) % classes


def ops_of(shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Augmentation of such images: of those in colour, their saturation too."""
    return OPS if shape[0] == 1 else (*OPS[:-1], "saturation", OPS[-1])


def trained_plainly(images: Any, labels: Any, shape: tuple[int, int, int], steps: int, batch: int) -> Any:
    """The published loop for so many steps: a network trained on batches from a DataLoader."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from benchmarks.plain import PlainConvNet, plain_training

    net = PlainConvNet(*shape, WIDTH)
    loader = DataLoader(TensorDataset(images, labels), batch_size=min(batch, len(images)), shuffle=True, drop_last=True)
    draw = torch.Generator().manual_seed(0)
    for _ in zip(range(steps), plain_training(net, loader, ops_of(shape), draw), strict=False):
        pass
    return net


def work(way: str, task: str) -> None:
    """A process that does its task once for every line it reads, which is a number of networks, and answers."""
    import torch

    from ptm_ray.core import nets
    from ptm_ray.core.expert import ExpertTraining
    from ptm_ray.stages.memory import keep_memory

    published = way in (PLAIN, PLAIN_KEPT)
    if not published:
        torch.set_num_threads(1)
    if way != PLAIN:
        keep_memory()
    expert = task == "experts"
    shape = shape_of(task)
    images, labels = images_of(2048 if expert else int(task), shape)
    scored, _ = images_of(SCORED, shape)
    sizes = dict(zip(("channels", "resolution", "classes"), shape, strict=True))
    precision = "bfloat16" if way == "bfloat16" else "float32"
    network = nets.build("convnet", **sizes, width=WIDTH, depth=3, precision=precision)
    draw = torch.Generator().manual_seed(0)

    def plain() -> None:
        steps, batch = (EXPERT_STEPS, EXPERT_BATCH) if expert else (EVALUATION_STEPS, 256)
        net = trained_plainly(images, labels, shape, steps, batch)
        if not expert:
            with torch.no_grad():
                net(scored)

    def ours() -> None:
        settings: dict[str, Any] = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "balanced": False, "ops": OPS}
        training = ExpertTraining(network, images, labels, batch_size=EXPERT_BATCH, **settings)
        list(training.snapshots([network.init(draw)], [EXPERT_STEPS], [draw]))

    run: Callable[[], None] = plain if published else ours
    for line in sys.stdin:
        for _ in range(int(line)):
            run()
        print("done", flush=True)


class Way(Protocol):
    """How networks are trained."""

    def seconds(self, networks: int) -> float:
        """For so many of them."""

    def stop(self) -> None:
        """It is not asked any more."""


class Processes:
    """Those of one way: one, or one on every core."""

    def __init__(self, way: str, task: str) -> None:
        words = [sys.executable, "-m", "benchmarks.training", way, task]
        count = 1 if way in (PLAIN, PLAIN_KEPT) else (os.cpu_count() or 1)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._members = [subprocess.Popen(words, **pipes) for _ in range(count)]

    def seconds(self, networks: int) -> float:
        """For so many networks, dealt out evenly."""
        started = time.perf_counter()
        shares = [len(range(number, networks, len(self._members))) for number in range(len(self._members))]
        for member, share in zip(self._members, shares, strict=True):
            member.stdin.write(f"{share}\n")  # type: ignore[union-attr]
            member.stdin.flush()  # type: ignore[union-attr]
        for member in self._members:
            member.stdout.readline()  # type: ignore[union-attr]
        return time.perf_counter() - started

    def stop(self) -> None:
        for member in self._members:
            member.communicate()


class Workers:
    """Evaluation on Ray: a worker of one thread on every core, and whatever `evaluate` does to keep them busy."""

    def __init__(self, task: str) -> None:
        import numpy as np
        import ray

        from ptm_ray.config.files import resolve
        from ptm_ray.data.dataset import MedicalDataset, Split
        from ptm_ray.orchestrate.crew import Crew
        from ptm_ray.orchestrate.session import connected
        from ptm_ray.stages.problem import Problem

        channels, side, classes = shape_of(task)
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (SCORED, side, side, channels), dtype=np.uint8)
        split = Split(pixels, np.arange(SCORED) % classes)
        named = tuple(f"class {label}" for label in range(classes))
        dataset = MedicalDataset("random", split, split, split, named, "multi-class", side_matters=True)
        recipe = {"steps": EVALUATION_STEPS, "batch_size": 256}
        problem = Problem(dataset, resolve({"network": {"width": WIDTH}, "evaluation": recipe}))
        assert problem.ops == ops_of((channels, side, classes))
        images, labels = images_of(int(task), (channels, side, classes))
        self._set = images.numpy(), np.eye(classes, dtype=np.float32)[labels]
        self._until_stopped = ExitStack()
        self._until_stopped.enter_context(connected(os.cpu_count()))
        self._crew = self._until_stopped.enter_context(Crew.start(ray.put(problem), os.cpu_count() or 1))

    def seconds(self, networks: int) -> float:
        """For so many, until all have said what they see in the test images."""
        from ptm_ray.evaluation.protocol import jobs
        from ptm_ray.orchestrate.evaluators import predict

        todo = jobs(["synthetic"], ["convnet"], networks, 1)
        started = time.perf_counter()
        predict(self._crew, todo, self._set, 1, lambda done, wanted: None)
        return time.perf_counter() - started

    def stop(self) -> None:
        self._until_stopped.close()


def compare(task: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """Medians of all ways and of `more`, in turns, after one that only warms up.

    The task: "experts", or images of a set.
    """
    expert = task == "experts"
    networks = 2 * (os.cpu_count() or 1) if expert else NETWORKS
    ways: dict[str, Way] = {way: Processes(way, task) for way in (PLAIN, *more)}
    if expert:
        ways |= {precision: Processes(precision, task) for precision in precisions()}
    else:
        ways["float32"] = Workers(task)
    asked = {name: partial(way.seconds, networks) for name, way in ways.items()}
    for measured in asked.values():
        measured()
    seconds = in_turns(asked)
    for way in ways.values():
        way.stop()
    # A training step is three forward passes.
    passes = 3 * EXPERT_STEPS * EXPERT_BATCH if expert else 3 * EVALUATION_STEPS * int(task) + SCORED
    return {
        "what": "experts" if expert else f"evaluation of {NETWORKS} networks, {task} images",
        "seconds": seconds,
        "flops": networks * passes * forward_flops(shape_of(task), WIDTH),
    }


if __name__ == "__main__":
    work(*sys.argv[1:])
