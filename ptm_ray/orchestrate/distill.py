"""The main job on Ray: experts, buffer, distillation, evaluation, set."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from ptm_ray.config import DistillConfig
from ptm_ray.data import MedicalDataset
from ptm_ray.errors import ConfigError, WorkerFailed
from ptm_ray.evaluation.metrics import load_ahead, score
from ptm_ray.evaluation.protocol import Job, Kind, jobs
from ptm_ray.orchestrate import evaluators
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.crew import TRIES, Crew, cause_of
from ptm_ray.orchestrate.experts import experts_alone, experts_with_progress
from ptm_ray.orchestrate.outcome import DistillResult, cost_of, history, run_identity, synthetic_set
from ptm_ray.orchestrate.session import connected, count_workers
from ptm_ray.orchestrate.watcher import Nobody, Watcher
from ptm_ray.orchestrate.workers import LOST
from ptm_ray.stages.finished import Finished
from ptm_ray.stages.matching import Row
from ptm_ray.stages.problem import Problem
from ptm_ray.store import atomic
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)

#: What a run's experts took, in its folder: a call that goes on with it finds them there.
COST = "cost.json"


def train_experts(
    config: DistillConfig,
    dataset: MedicalDataset,
    *,
    experts_root: Place,
    workers: int | None = None,
    gpus: float = 0.0,
    watcher: Watcher | None = None,
) -> Path | str:
    """Trains the experts that are missing and returns the folder that holds them all.

    `gpus`: the share of one that each worker has.
    """
    problem = Problem(dataset, config).check()
    if not config.num_experts:
        raise ConfigError(
            f"method {config.method} on {config.images.init} images looks at no experts, so there are none to train; "
            "leave --method out for those that others share"
        )
    with connected(workers):
        buffer = experts_alone(problem, experts_root, count_workers(workers, gpus), watcher or Nobody(), gpus)
    return buffer.store.place.shown


def distill(
    config: DistillConfig,
    dataset: MedicalDataset,
    out: Place,
    *,
    experts_root: Place,
    budget_s: float | None = None,
    workers: int | None = None,
    gpus: float = 0.0,
    watcher: Watcher | None = None,
) -> DistillResult:
    """Experts → buffer → progressive matching → set → scores, into `out`.

    An `out` that holds this very run is gone on with: finished stages are not done again. `budget_s` bounds the
    distillation's own wall time, after the experts; `gpus` is the share of one that each worker has. Raises `PtmError`
    of some kind for bad settings, images or folders, all before any expert trains.
    """
    watcher = watcher or Nobody()
    problem = Problem(dataset, config).check()
    folder, identity = RunFolder(out), run_identity(config, dataset)
    fresh = folder.place.is_empty()
    if not fresh:
        # What holds anything else is refused before Ray starts.
        folder.claim(identity)
    with connected(workers):
        there = count_workers(workers, gpus)
        if config.matchers > there and not gpus:
            raise ConfigError(f"{config.matchers} matchers want a CPU each, but there are {there}; lower matchers")
        if fresh:
            # Not before: what is refused above is mended by settings, which make it another run.
            folder.claim(identity)
        with Crew.start(ray.put(problem), there, gpus) as crew:
            buffer, experts_s = _experts(problem, crew, experts_root, folder, watcher)
            found = _distillation(config, crew, buffer, folder, budget_s, watcher)
            held = folder.load_result()
            if held is not None and held["cost"]["outer_steps"] == len(found.rows):
                # Nothing was added since the test split was read: it is not read again.
                return DistillResult(folder.set_place.shown, held["scores"], held["cost"])
            arrays = (found.images, found.labels)
            kinds: tuple[Kind, ...] = ("synthetic", *config.evaluation.compare_with)
            started = time.monotonic()
            results = _evaluation(problem, crew, arrays, kinds, watcher)
            evaluation_s = time.monotonic() - started
    # Pictures take a third of a second to import, which neither bad input nor a worker's start need wait for.
    from ptm_ray.report.run import write_report

    cost = cost_of(problem, found, buffer.store.params, experts_s, evaluation_s)
    scores = evaluators.by_kind(results)
    made = synthetic_set(problem, found, cost)
    made.save(folder.set_path)
    write_report(folder, made, history(found, scores, evaluators.by_network(results), cost))
    folder.publish()
    return DistillResult(folder.set_place.shown, scores, cost)


def evaluate(
    problem: Problem,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    workers: int | None = None,
    gpus: float = 0.0,
    kinds: Sequence[Kind] = ("synthetic", "random", "full"),
    watcher: Watcher | None = None,
) -> tuple[evaluators.Scores, dict[str, evaluators.Scores]]:
    """Scores of a set, (n, channels, height, width) normalised and (n, classes) probabilities: overall, by network."""
    with connected(workers), Crew.start(ray.put(problem), count_workers(workers, gpus), gpus) as crew:
        results = _evaluation(problem, crew, (images, labels), kinds, watcher or Nobody())
    return evaluators.by_kind(results), evaluators.by_network(results)


def _experts(
    problem: Problem, crew: Crew, root: Place, folder: RunFolder, watcher: Watcher
) -> tuple[TrajectoryBuffer, float]:
    """`experts_with_progress`, and the seconds that it took in all calls of the run in `folder`."""
    held = folder.place.read(COST)
    before: float = 0.0 if held is None else json.loads(held)["experts_s"]
    started = time.monotonic()
    try:
        buffer = experts_with_progress(problem, crew, root, watcher)
    finally:
        # Where it was interrupted too: the experts that were finished are kept.
        seconds = before + time.monotonic() - started
        atomic.write_text(folder.root / COST, json.dumps({"experts_s": seconds}))
        folder.place.push(COST)
    return buffer, seconds


def _shown(watcher: Watcher, budget_s: float | None, most_steps: float) -> Callable[[Row], None]:
    """What shows the watcher an outer step."""
    total = budget_s or most_steps

    def show(row: Row) -> None:
        done = row.elapsed_s if budget_s else row.outer_step + 1
        words = f"step {row.outer_step}, end {row.end}, loss {row.loss:.3f}, {row.phase}"
        watcher.update("distilling", min(done, total), total, words)

    return show


def _distillation(
    config: DistillConfig,
    crew: Crew,
    buffer: TrajectoryBuffer,
    folder: RunFolder,
    budget_s: float | None,
    watcher: Watcher,
) -> Finished:
    """The finished run, by as many members as match together."""
    show = _shown(watcher, budget_s, config.most_steps(budget_s))
    if config.matchers == 1:
        return _by_one(crew, buffer, folder, budget_s, show)
    # Train takes a second to import, which those who match alone need not wait for.
    from ptm_ray.orchestrate.together import distil_together, take_over_what_is_left

    if crew.gpus:
        # There one worker matches for all, side by side.
        take_over_what_is_left(folder)
        return _by_one(crew, buffer, folder, budget_s, show)
    # Those that match take the CPUs of as many workers; those that are left score. Where a node was lost, there may be
    # fewer CPUs than workers.
    wanting = max(0, len(crew.members) + len(crew.arriving) - count_workers(None))
    crew.dismiss(config.matchers + wanting)
    distil_together(crew.problem_ref, buffer, crew.members, folder, config.matchers, budget_s, show)
    crew.send_for(config.matchers)
    # What is left to do takes no outer step.
    return _by_one(crew, buffer, folder, 0.0, show)


def _by_one(
    crew: Crew, buffer: TrajectoryBuffer, folder: RunFolder, budget_s: float | None, show: Callable[[Row], None]
) -> Finished:
    """By a member that the others score for; by another, from the last checkpoint, if it is lost.

    Gives up where that keeps happening at the same outer step.
    """
    losses, furthest = 0, -1
    while True:
        leader = crew.leader()
        helpers = [member for member in crew.members if member is not leader]
        where = folder.place.absolute()
        stream = leader.distill.options(num_returns="streaming").remote(buffer, helpers, where, budget_s)
        try:
            for ref in stream:
                row: Row = ray.get(ref)
                if row.outer_step > furthest:
                    losses, furthest = 0, row.outer_step
                show(row)
            found: Finished = ray.get(leader.finished.remote())
        except RayTaskError as error:
            raise cause_of(error, "distilling") from error
        except LOST as error:
            losses += 1
            if losses == TRIES:
                raise WorkerFailed(
                    f"the distilling worker died {TRIES} times ({error}); run the same command again to go on from its "
                    "last checkpoint"
                ) from error
            log.warning("the distilling worker died; another goes on from its last checkpoint")
            crew.lost(leader)
        else:
            return found


def _evaluation(
    problem: Problem,
    crew: Crew,
    synthetic: tuple[np.ndarray, np.ndarray],
    kinds: Sequence[Kind],
    watcher: Watcher,
) -> list[tuple[Job, dict[str, float]]]:
    """What every network scores, by a job of its seed alone."""
    settings = problem.config.evaluation
    # A GPU trains all networks of a set side by side; on CPUs each is a job, so that none is idle while there are some.
    together = settings.seeds if crew.gpus else 1
    todo = jobs(kinds, settings.networks, settings.seeds, settings.random_draws, together)

    def show(done: int, total: int) -> None:
        watcher.update("evaluating", done, total, f"{done} of {total} networks")

    load_ahead()
    found = evaluators.predict(crew, todo, synthetic, problem.config.ipc, show)
    labels = torch.tensor(problem.dataset.test.labels)
    return [
        (replace(job, seeds=(seed,)), score(torch.tensor(shares), labels))
        for job in todo
        for seed, shares in zip(job.seeds, found[job], strict=True)
    ]
