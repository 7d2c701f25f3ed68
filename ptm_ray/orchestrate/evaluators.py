"""Evaluations on Ray: some networks are a job, trained by whichever worker is free.

Networks don't divide by workers: of five on two workers the last one would leave one of both with nothing to do. Hence
the last jobs go in legs, taken by turns, and what was begun by one worker is taken on by another.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayTaskError

from ptm_ray.errors import WorkerFailed
from ptm_ray.evaluation.protocol import Job, repetitions, summarise
from ptm_ray.evaluation.train import Training
from ptm_ray.orchestrate.crew import TRIES, Crew, cause_of
from ptm_ray.orchestrate.workers import LEGS, LOST, Arrays

Scores = dict[str, dict[str, dict[str, float | int]]]


@dataclass(frozen=True, eq=False)
class Task:
    """A job, how many of its legs are to be done, how long one takes, and how far its networks are."""

    job: Job
    legs: int = LEGS
    seconds: float = math.inf
    begun: Training | None = None

    def after_a_leg(self, seconds: float, begun: Training) -> "Task":
        """What is left of it."""
        return replace(self, legs=self.legs - 1, seconds=seconds, begun=begun)


class Waiting:
    """Tasks that wait for a worker. Of those that are begun, the one with the most left to do is next; before them all
    others, in their order.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._tasks = [Task(job) for job in jobs]

    def __len__(self) -> int:
        return len(self._tasks)

    def put(self, task: Task) -> None:
        """One more; before its equals."""
        self._tasks.insert(0, task)

    def take(self, running: int, workers: int) -> tuple[Task, bool]:
        """The next one, and whether for a leg alone, while so many others are running.

        While there are enough, jobs are done whole, which sends less about; and so are those that are left once each
        worker has its own.
        """
        task = max(self._tasks, key=lambda task: task.legs * task.seconds)
        unfinished = running + len(self._tasks)
        self._tasks.remove(task)
        return task, task.legs > 1 and workers < unfinished < 2 * workers


class Run(NamedTuple):
    """A task on a worker: a leg of it, or all that is left."""

    task: Task
    leg: bool
    worker: Any
    started: float


def predict(
    crew: Crew,
    todo: Sequence[Job],
    synthetic: Arrays | None,
    ipc: int,
    progress: Callable[[int, int], None],
    pixels: np.ndarray | None = None,
) -> dict[Job, list[np.ndarray]]:
    """Class probabilities, (n, classes), of every job's networks: for images (n, height, width, channels) uint8, or
    for those of the test split. `progress` is told of networks, done and wanted.

    What is made of them is up to the caller, in one process: torchmetrics alone takes seconds to import, which no
    worker need wait for. A job whose worker is lost is done by another. Raises `WorkerFailed` where that keeps
    happening.
    """
    shared, images = ray.put(synthetic), ray.put(pixels)
    # Longest first, so that none of them is left to run alone at the end.
    queue = sorted(todo, key=lambda job: (job.kind != "full", job.network == "convnet"))
    waiting, failed = Waiting(queue), Counter[Job]()
    running: dict[Any, Run] = {}
    found: dict[Job, list[np.ndarray]] = {}
    while waiting or running:
        crew.leader()
        busy = [run.worker for run in running.values()]
        for worker in crew.members:
            if worker not in busy and waiting:
                task, leg = waiting.take(len(running), len(crew.members))
                # A GPU's networks stay there, all of a set in one job.
                leg = leg and not crew.gpus
                if leg:
                    ref = worker.train_a_leg.remote(task.job, shared, ipc, task.begun)
                else:
                    ref = worker.predict.remote(task.job, shared, ipc, images, task.begun)
                running[ref] = Run(task, leg, worker, monotonic())
        (ready,), _ = ray.wait([*running, *crew.arriving], num_returns=1)
        if ready not in running:
            crew.welcome(ready)
            continue
        run = running.pop(ready)
        job = run.task.job
        try:
            made = ray.get(ready)
        except RayTaskError as error:
            raise cause_of(error, f"evaluating {job}") from error
        except LOST as error:
            failed[job] += 1
            if failed[job] >= TRIES:
                raise WorkerFailed(f"the worker that evaluated {job} died {TRIES} times; last: {error}") from error
            crew.lost(run.worker)
            waiting.put(run.task)
            continue
        if run.leg:
            del failed[job]
            waiting.put(run.task.after_a_leg(monotonic() - run.started, made))
        else:
            found[job] = made
        progress(sum(map(len, found.values())), sum(len(job.seeds) for job in todo))
    return found


def by_kind(results: Sequence[tuple[Job, dict[str, float]]]) -> Scores:
    """Set kind → metric → summary over draws, or over seeds where there is one draw, each the mean of its networks.

    `results` has a job of a single seed for every network.
    """
    kinds = dict.fromkeys(job.kind for job, _ in results)
    return {kind: summarise(repetitions([pair for pair in results if pair[0].kind == kind])) for kind in kinds}


def by_network(results: Sequence[tuple[Job, dict[str, float]]]) -> dict[str, Scores]:
    """The same for each architecture alone."""
    networks = dict.fromkeys(job.network for job, _ in results)
    return {name: by_kind([pair for pair in results if pair[0].network == name]) for name in networks}
