"""Evaluations on Ray: some networks are a job, scored by whichever worker is free."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ptm_ray.errors import PtmError, WorkerFailed
from ptm_ray.evaluation.protocol import Job, summarise
from ptm_ray.orchestrate.crew import TRIES, Crew
from ptm_ray.orchestrate.workers import Arrays

Scores = dict[str, dict[str, dict[str, float | int]]]


def evaluate(
    crew: Crew,
    todo: Sequence[Job],
    synthetic: Arrays | None,
    ipc: int,
    progress: Callable[[int, int], None],
) -> dict[Job, list[dict[str, float]]]:
    """Metrics of every job's networks on the test split. `progress` is told of networks, done and wanted.

    A job whose worker is lost is done by another. Raises `WorkerFailed` where that keeps happening.
    """
    shared = ray.put(synthetic)
    waiting, failed = list(todo), Counter[Job]()
    running: dict[Any, tuple[Job, Any]] = {}
    found: dict[Job, list[dict[str, float]]] = {}
    while waiting or running:
        crew.leader()
        busy = [worker for _, worker in running.values()]
        for worker in crew.members:
            if worker not in busy and waiting:
                job = waiting.pop(0)
                running[worker.score.remote(job, shared, ipc)] = (job, worker)
        (ready,), _ = ray.wait([*running, *crew.arriving], num_returns=1)
        if ready not in running:
            crew.welcome(ready)
            continue
        job, worker = running.pop(ready)
        try:
            found[job] = ray.get(ready)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, PtmError) else None
            raise cause or WorkerFailed(f"evaluating {job} failed: {error}") from error
        except RayActorError as error:
            failed[job] += 1
            if failed[job] >= TRIES:
                raise WorkerFailed(f"the worker that evaluated {job} died {TRIES} times; last: {error}") from error
            crew.lost(worker)
            waiting.insert(0, job)
        progress(sum(map(len, found.values())), sum(len(job.seeds) for job in todo))
    return found


def by_kind(results: Sequence[tuple[Job, dict[str, float]]]) -> Scores:
    """Set kind → metric → summary, over networks of all architectures, draws and seeds."""
    kinds = dict.fromkeys(job.kind for job, _ in results)
    return {kind: summarise([metrics for job, metrics in results if job.kind == kind]) for kind in kinds}


def by_network(results: Sequence[tuple[Job, dict[str, float]]]) -> dict[str, Scores]:
    """The same for each architecture alone."""
    networks = dict.fromkeys(job.network for job, _ in results)
    return {name: by_kind([pair for pair in results if pair[0].network == name]) for name in networks}
