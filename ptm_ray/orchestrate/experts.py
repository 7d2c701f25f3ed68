"""Many experts at once: workers train them, snapshots stream into the buffer, files make them last."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ptm_ray.core.trajectory import Trajectory
from ptm_ray.errors import StoreError, WorkerFailed
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.crew import TRIES, Crew, cause_of
from ptm_ray.orchestrate.watcher import Watcher
from ptm_ray.orchestrate.workers import LOST
from ptm_ray.stages.experts import store_of
from ptm_ray.stages.problem import Problem
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)

#: Experts that a worker with a share of a GPU trains side by side: more are hardly faster (benchmarks.gpu), and what a
#: lost worker was training is trained again.
SIDE_BY_SIDE = 4
#: Called at the start and after every snapshot with the training steps done and wanted, over all missing experts.
Progress = Callable[[int, int], None]


def fill_buffer(
    problem: Problem,
    crew: Crew,
    experts_root: Place,
    progress: Progress,
    recruits: int = 0,
    side_by_side: int | None = None,
) -> TrajectoryBuffer:
    """Trains the experts that are missing, reads those that are there, and returns all that the run looks at.

    `recruits`: workers that may join the crew, as far as experts are missing. `side_by_side`: experts that a worker
    trains together, where there is one for each; by default several on a GPU.

    Raises `StoreError` before any training where the files can't be written, `WorkerFailed` where an expert keeps
    failing or no worker is left.
    """
    store = store_of(problem, experts_root)
    count, per_expert = problem.config.num_experts, problem.experts.snapshots + 1
    if not count:
        return TrajectoryBuffer(store, ())
    held: dict[int, Trajectory] = {}
    for expert in range(count):
        try:
            if store.there(expert):
                held[expert] = store.read(expert)
        except StoreError as error:
            log.warning("%s", error)
    missing = [expert for expert in range(count) if expert not in held]
    store.prepare(count, per_expert)
    crew.recruit(min(recruits, len(missing)))
    refs = {expert: [ray.put(vector) for vector in found.theta] for expert, found in held.items()}
    together = side_by_side or (SIDE_BY_SIDE if crew.gpus else 1)
    # None is idle while another has several.
    together = max(1, min(together, -(-len(missing) // max(1, len(crew.members)))))
    refs.update(_Run(problem, crew, experts_root.absolute(), progress, together).train(missing))
    return TrajectoryBuffer(store, tuple(tuple(refs[expert]) for expert in range(count)))


def experts_with_progress(
    problem: Problem, crew: Crew, root: Place, watcher: Watcher, recruits: int = 0
) -> TrajectoryBuffer:
    """`fill_buffer`, its progress shown to the watcher."""
    settings, epochs = problem.experts, problem.epochs()[-1]

    def show(done: int, wanted: int) -> None:
        trained = settings.count - (wanted - done) / settings.steps
        ran = f", {done / settings.steps * epochs:.0f} epochs" if wanted else ""
        watcher.update("experts", trained, settings.count, f"{int(trained)} of {settings.count} trained{ran}")

    return fill_buffer(problem, crew, root, show, recruits)


def experts_alone(problem: Problem, root: Place, workers: int, watcher: Watcher, gpus: float = 0.0) -> TrajectoryBuffer:
    """`experts_with_progress`, by workers that are there for it alone: none where no expert is missing."""
    with Crew(ray.put(problem), [], gpus) as crew:
        return experts_with_progress(problem, crew, root, watcher, workers)


class _Run:
    """One pass over the missing experts: a queue, and one stream of snapshots for each busy worker.

    A stream has those of several experts, in turn, where several are trained together.
    """

    def __init__(self, problem: Problem, crew: Crew, experts_root: Place, progress: Progress, together: int) -> None:
        self._crew, self._root, self._together = crew, experts_root, together
        self._snapshot_steps = problem.snapshot_steps()
        self._progress, self._finished, self._wanted = progress, 0, 0
        self._queue: deque[int] = deque()
        self._failed: dict[int, int] = {}
        self._refs: dict[int, list[Any]] = {}
        self._streams: dict[Any, tuple[Any, list[int]]] = {}

    def train(self, experts: list[int]) -> dict[int, list[Any]]:
        """Snapshot references of these experts."""
        self._queue.extend(experts)
        self._wanted = len(experts) * self._snapshot_steps[-1]
        self._progress(0, self._wanted)
        while self._queue or self._streams:
            self._hand_out()
            arriving = self._crew.arriving
            ready, _ = ray.wait([*self._streams, *arriving], num_returns=1, fetch_local=False)
            if ready[0] in arriving:
                self._crew.welcome(ready[0])
            else:
                self._advance(ready[0])
        return self._refs

    def _hand_out(self) -> None:
        """Gives every worker that is free an expert, or as many as it trains together."""
        self._crew.leader()
        busy = [worker for worker, _ in self._streams.values()]
        for worker in self._crew.members:
            if worker not in busy and self._queue:
                experts = [self._queue.popleft() for _ in range(min(self._together, len(self._queue)))]
                method = worker.train_experts.options(num_returns="streaming")
                self._streams[method.remote(experts, self._root)] = (worker, experts)
                self._refs.update({expert: [] for expert in experts})

    def _advance(self, stream: Any) -> None:
        worker, experts = self._streams[stream]
        # The first of those with the fewest: snapshots come in turn.
        coming = min(experts, key=lambda expert: len(self._refs[expert]))
        try:
            self._refs[coming].append(next(stream))
        except StopIteration:
            del self._streams[stream]
            self._finish(worker, experts)
            return
        under_way = sum(self._steps_done(expert) for _, experts in self._streams.values() for expert in experts)
        self._progress(self._finished + under_way, self._wanted)

    def _steps_done(self, expert: int) -> int:
        """As its snapshots say; a failed stream ends with a reference of its own, to the error."""
        snapshots = min(len(self._refs[expert]), len(self._snapshot_steps))
        return self._snapshot_steps[snapshots - 1] if snapshots else 0

    def _finish(self, worker: Any, experts: list[int]) -> None:
        """The stream has ended; its last reference says whether well."""
        # The last of those with the most.
        latest = max(reversed(experts), key=lambda expert: len(self._refs[expert]))
        try:
            ray.get(self._refs[latest][-1])
        except RayTaskError as error:
            raise cause_of(error, _named(experts)) from error
        except LOST as error:
            self._retry(worker, experts, error)
        else:
            self._finished += self._snapshot_steps[-1] * len(experts)

    def _retry(self, worker: Any, experts: list[int], error: RayError) -> None:
        for expert in experts:
            self._failed[expert] = self._failed.get(expert, 0) + 1
            del self._refs[expert]
        if max(self._failed[expert] for expert in experts) >= TRIES:
            raise WorkerFailed(f"the worker of {_named(experts)} died {TRIES} times; last: {error}") from error
        log.warning("the worker of %s died; training again", _named(experts))
        self._crew.lost(worker)
        self._queue.extendleft(reversed(experts))


def _named(experts: list[int]) -> str:
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts))}"
