"""Evaluations on Ray: every network is a job of its own, scored by whichever worker is free."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ptm_ray.errors import PtmError, WorkerFailed
from ptm_ray.evaluation.protocol import Job, summarise
from ptm_ray.orchestrate.workers import Arrays

Scores = dict[str, dict[str, dict[str, float | int]]]


def evaluate(
    workers: Sequence[Any],
    todo: Sequence[Job],
    synthetic: Arrays | None,
    ipc: int,
    progress: Callable[[int, int], None],
) -> list[tuple[Job, dict[str, float]]]:
    """Metrics of every job on the test split, in the order asked. Raises `WorkerFailed` where a worker dies."""
    shared = ray.put(synthetic)
    free, waiting = list(workers), list(todo)
    running: dict[Any, tuple[Job, Any]] = {}
    found: dict[Job, dict[str, float]] = {}
    while waiting or running:
        while waiting and free:
            job, worker = waiting.pop(0), free.pop()
            running[worker.score.remote(job, shared, ipc)] = (job, worker)
        done, _ = ray.wait(list(running), num_returns=1)
        job, worker = running.pop(done[0])
        try:
            found[job] = ray.get(done[0])
        except (RayActorError, RayTaskError) as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, PtmError) else WorkerFailed(f"evaluating {job} failed: {error}") from error
        free.append(worker)
        progress(len(found), len(todo))
    return [(job, found[job]) for job in todo]


def by_kind(results: Sequence[tuple[Job, dict[str, float]]]) -> Scores:
    """Set kind → metric → summary, over networks of all architectures, draws and seeds."""
    kinds = dict.fromkeys(job.kind for job, _ in results)
    return {kind: summarise([metrics for job, metrics in results if job.kind == kind]) for kind in kinds}


def by_network(results: Sequence[tuple[Job, dict[str, float]]]) -> dict[str, Scores]:
    """The same for each architecture alone."""
    networks = dict.fromkeys(job.network for job, _ in results)
    return {name: by_kind([pair for pair in results if pair[0].network == name]) for name in networks}
