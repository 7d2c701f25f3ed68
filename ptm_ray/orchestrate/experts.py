"""Many experts at once: workers train them, snapshots stream into the buffer, files make them last."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ptm_ray.errors import PtmError, WorkerFailed
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.workers import start_workers
from ptm_ray.stages.experts import store_of
from ptm_ray.stages.problem import Problem
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)

#: An expert whose worker died is tried again this often, on a new worker.
TRIES = 3
#: Called at the start and after every snapshot with the training steps done and wanted, over all missing experts.
Progress = Callable[[int, int], None]


def fill_buffer(
    problem: Problem, problem_ref: Any, workers: list[Any], experts_root: Place, progress: Progress
) -> TrajectoryBuffer:
    """Trains the experts that are missing, reads those that are there, and returns all of them.

    `workers` is changed in place where one died and was replaced. Raises `StoreError` before any training where the
    files can't be written, `WorkerFailed` where an expert keeps failing.
    """
    store = store_of(problem, experts_root)
    count, per_expert = problem.experts.count, problem.experts.snapshots + 1
    for expert in range(count):
        damaged = store.damaged(expert)
        if damaged:
            log.warning("%s", damaged)
    missing = store.missing(count)
    store.prepare(count, per_expert)
    refs: dict[int, list[Any]] = {}
    for expert in set(range(count)) - set(missing):
        refs[expert] = [ray.put(vector) for vector in store.read(expert).theta]
    run = _Run(problem, problem_ref, workers, experts_root, progress)
    refs.update(run.train(missing))
    return TrajectoryBuffer(store, tuple(tuple(refs[expert]) for expert in range(count)))


class _Run:
    """One pass over the missing experts: a queue, and one stream of snapshots for each busy worker."""

    def __init__(
        self, problem: Problem, problem_ref: Any, workers: list[Any], experts_root: Place, progress: Progress
    ) -> None:
        self._problem_ref, self._workers, self._root = problem_ref, workers, experts_root
        self._snapshot_steps = problem.snapshot_steps()
        self._progress, self._finished, self._wanted = progress, 0, 0
        self._queue: deque[int] = deque()
        self._failed: dict[int, int] = {}
        self._refs: dict[int, list[Any]] = {}
        self._streams: dict[Any, tuple[int, int]] = {}

    def train(self, experts: list[int]) -> dict[int, list[Any]]:
        """Snapshot references of these experts."""
        self._queue.extend(experts)
        self._wanted = len(experts) * self._snapshot_steps[-1]
        self._progress(0, self._wanted)
        for slot in range(len(self._workers)):
            self._start(slot)
        while self._streams:
            ready, _ = ray.wait(list(self._streams), num_returns=1, fetch_local=False)
            self._advance(ready[0])
        return self._refs

    def _start(self, slot: int) -> None:
        if not self._queue:
            return
        expert = self._queue.popleft()
        method = self._workers[slot].train_expert.options(num_returns="streaming")
        self._streams[method.remote(expert, self._root)] = (slot, expert)
        self._refs[expert] = []

    def _advance(self, stream: Any) -> None:
        slot, expert = self._streams[stream]
        try:
            self._refs[expert].append(next(stream))
        except StopIteration:
            del self._streams[stream]
            self._finish(slot, expert)
            return
        under_way = sum(self._steps_done(expert) for _, expert in self._streams.values())
        self._progress(self._finished + under_way, self._wanted)

    def _steps_done(self, expert: int) -> int:
        """As its snapshots say; a failed stream ends with a reference of its own, to the error."""
        snapshots = min(len(self._refs[expert]), len(self._snapshot_steps))
        return self._snapshot_steps[snapshots - 1] if snapshots else 0

    def _finish(self, slot: int, expert: int) -> None:
        """The stream has ended; its last reference says whether well."""
        try:
            ray.get(self._refs[expert][-1])
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, PtmError) else None
            raise cause or WorkerFailed(f"expert {expert} failed: {error}") from error
        except RayActorError as error:
            self._retry(slot, expert, error)
        else:
            self._finished += self._snapshot_steps[-1]
        self._start(slot)

    def _retry(self, slot: int, expert: int, error: RayActorError) -> None:
        self._failed[expert] = self._failed.get(expert, 0) + 1
        del self._refs[expert]
        if self._failed[expert] >= TRIES:
            raise WorkerFailed(f"the worker of expert {expert} died {TRIES} times; last: {error}") from error
        log.warning("the worker of expert %s died; training it again", expert)
        self._workers[slot] = start_workers(self._problem_ref, 1)[0]
        self._queue.appendleft(expert)
