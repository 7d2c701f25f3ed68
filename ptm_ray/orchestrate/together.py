"""One distillation over several workers with Ray Train: each matches an expert of its own, gradients are averaged.

An outer step then takes about as long as ever, and its gradient is the mean over several experts. Worth it where a
step takes long beside what averaging moves: the size of the synthetic images, once for every worker.
"""

import contextlib
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ptm_ray.core.unroll import Gradients
from ptm_ray.errors import PtmError, WorkerFailed, first_line
from ptm_ray.orchestrate.board import Board
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.session import interruptible
from ptm_ray.orchestrate.workers import RemoteScorer, validate_here
from ptm_ray.stages.distill import CHECKPOINT_EVERY_S, Distillation
from ptm_ray.stages.matching import Row
from ptm_ray.stages.memory import keep_memory
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Evaluator, InlineScorer, Scorer
from ptm_ray.store.checkpoints import RunFolder

#: Train's folder in that of the run, which it goes on from.
NAME = "together"
#: Restarts of the workers after one was lost; also attempts, a minute each, at getting them at all.
MAX_FAILURES = 3
#: Seconds between two looks at how far the workers are.
LOOK_EVERY_S = 0.5

T = TypeVar("T")


class TorchTeam:
    """The workers of this process's torch.distributed group."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.matchers = (self.rank,)

    def mean(self, gradients: Gradients) -> Gradients:
        """Of everybody's: one message of (images + labels + 2) numbers."""
        flat = torch.cat([part.reshape(-1) for part in gradients])
        torch.distributed.all_reduce(flat)
        means, at = [], 0
        for part in gradients:
            means.append(flat[at : at + part.numel()].view_as(part) / self.size)
            at += part.numel()
        return Gradients(*means)

    def broadcast(self, value: T) -> T:
        """The first one's."""
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        heard: T = box[0]
        return heard


class Reported(RunFolder):
    """A worker's own folder, whose checkpoints go to Train as well: the first one's are the run's."""

    def __init__(self, root: Path, *, first: bool) -> None:
        super().__init__(root)
        self._first = first

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """All workers take part, as Train wants them to."""
        super().save_checkpoint(state)
        train.report({"outer_step": state["step"]}, Checkpoint.from_directory(self.root) if self._first else None)


def take_over_what_is_left(folder: RunFolder) -> None:
    """The checkpoint of workers that were stopped, for a run that goes on in another way, as on a GPU."""
    path, filesystem = (folder.place / NAME).for_ray()
    try:
        last = train.Result.from_path(path, filesystem).checkpoint
    except RuntimeError:
        # None were there.
        return
    if last is not None:
        with last.as_directory() as made:
            folder.take_over(Path(made))


def distil_together(
    problem_ref: Any,
    buffer: TrajectoryBuffer,
    evaluators: list[Any],
    folder: RunFolder,
    size: int,
    budget_s: float | None,
    show: Callable[[Row], None],
) -> None:
    """Takes the run in `folder` to its end, on `size` workers of one CPU each; its checkpoint is there after.

    `folder` must be one that all nodes see, where there are several. `evaluators` score on the validation split; where
    there are none, the first worker does. Goes on from the last checkpoint where a worker was lost, or the run was.
    """
    held = folder.checkpoint_path.read_bytes() if folder.checkpoint_path.is_file() else None
    board = ray.remote(Board).options(num_cpus=0).remote()
    storage, filesystem = folder.place.for_ray()
    trainer = TorchTrainer(
        _member,
        train_loop_config={
            "problem": problem_ref,
            "buffer": buffer,
            "evaluators": evaluators,
            "budget_s": budget_s,
            "checkpoint_every_s": CHECKPOINT_EVERY_S,
            "held": held,
            "board": board,
        },
        scaling_config=ScalingConfig(num_workers=size, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=NAME,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with _watching(board, show):
        try:
            # Train greets on standard output, which is for results.
            with contextlib.redirect_stdout(sys.stderr), interruptible():
                result = trainer.fit()
        except train.TrainingFailedError as error:
            causes = list(getattr(error, "worker_failures", {}).values())
            known = next((c for c in causes if isinstance(c, PtmError)), None)
            # What Train says of it begins with a line that says nothing.
            first, *_ = [*causes, getattr(error, "controller_failure", error)]
            raise known or WorkerFailed(
                f"distilling together failed ({first_line(first)}); run the same command again to go on from its last "
                "checkpoint"
            ) from error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as made:
        folder.take_over(Path(made))
    (folder.place / NAME).remove()


def _member(parts: dict[str, Any]) -> None:
    """What every worker does."""
    torch.set_num_threads(1)
    keep_memory()
    problem: Problem = ray.get(parts["problem"])
    team = TorchTeam()
    ask = [evaluator.validate.remote for evaluator in parts["evaluators"]]
    own = Evaluator(problem)
    scorer: Scorer = RemoteScorer(ask, partial(validate_here, own)) if ask else InlineScorer(own)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Reported(Path(scratch), first=team.rank == 0)
        if parts["held"] is not None:
            folder.checkpoint_path.write_bytes(parts["held"])
        checkpoint = train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as last:
                folder.take_over(Path(last))
        run = Distillation(problem, parts["buffer"], scorer, folder, team)
        # Without the last validation, which comes after the checkpoint: that is for the run that takes it over.
        run.checkpoint_every_s = parts["checkpoint_every_s"]
        for row in run.run(parts["budget_s"], stop_after=math.inf):
            if team.rank == 0:
                parts["board"].show.remote(asdict(row))


@contextlib.contextmanager
def _watching(board: Any, show: Callable[[Row], None]) -> Iterator[None]:
    """Shows what comes to the board, from a thread: `fit` wants the main one, where an interrupt arrives."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            for row in ray.get(board.take.remote()):
                show(Row(**row))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        ray.kill(board)
