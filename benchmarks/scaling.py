"""What becomes of a job on 1, 8, 64 and 1,000 workers: a small model, its constants measured here, checked here.

    python -m benchmarks.scaling

Experts: each worker trains one at a time; every snapshot passes the driver's loop once. So experts per hour grow with
the workers until the driver is busy all the time. Buffer: bytes of all snapshots, and of those that a worker's node
holds. Evaluators: trials of a sweep hand over a candidate every few outer steps and wait once each evaluator has
`RemoteScorer.QUEUE_LENGTH` of them; simulated, event by event.

Checked: experts per hour with one and two workers, and the evaluators' queue with trials and evaluators that sleep for
as long as real ones work, so that two cores are enough for many. A worker here is a CPU core. A GPU is one that trains,
matches and scores so many times faster (`--faster`, an assumption); the driver and the network stay what they are.
"""

import argparse
import heapq
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptm_ray.config.files import resolve
from ptm_ray.core.synthetic import from_noise
from ptm_ray.data.phantom import cellphantom
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.experts import fill_buffer
from ptm_ray.orchestrate.session import connected
from ptm_ray.orchestrate.workers import RemoteScorer
from ptm_ray.stages.experts import ExpertTrainer
from ptm_ray.stages.problem import Problem
from ptm_ray.store.places import Place

WORKERS = (1, 8, 64, 1000)
#: Settings of the measured job: the table's network, fewer training steps.
SETTINGS: dict[str, Any] = {"ipc": 1, "experts": {"count": 8, "steps": 150}}
#: Experts of a job for a thousand workers.
EXPERTS = 1000


@dataclass(frozen=True)
class Constants:
    """Seconds and bytes. `driver`: of the driver, for each snapshot; `every`: outer steps between two candidates."""

    expert_s: float
    driver_s: float
    snapshots: int
    snapshot_bytes: int
    step_s: float
    validation_s: float
    every: int


def experts_per_hour(constants: Constants, workers: int) -> float:
    """By the workers, or by the driver, whichever is less."""
    by_workers = workers / constants.expert_s
    by_driver = 1 / (constants.snapshots * constants.driver_s)
    return 3600 * min(by_workers, by_driver)


def slowdown(constants: Constants, trials: int, evaluators: int, candidates: int = 60) -> float:
    """Time of a trial, until its last answer, over that of one which never waits for an evaluator: simulated."""
    matching = constants.every * constants.step_s
    busy_until = [0.0] * evaluators
    answered: list[list[float]] = [[] for _ in range(trials)]
    # Trials start one after another, as they do, rather than in step.
    offsets = [matching * trial / trials for trial in range(trials)]
    events = [(offset + matching, trial) for trial, offset in enumerate(offsets)]
    heapq.heapify(events)
    ends = [0.0] * trials
    while events:
        now, trial = heapq.heappop(events)
        mine = answered[trial]
        # A trial waits as long as every evaluator owes it as many answers as may be waited for.
        if len(mine) >= (allowed := RemoteScorer.QUEUE_LENGTH * evaluators):
            now = max(now, mine[-allowed])
        evaluator = (trial + len(mine)) % evaluators
        busy_until[evaluator] = max(now, busy_until[evaluator]) + constants.validation_s
        mine.append(busy_until[evaluator])
        ends[trial] = max(now, mine[-1])
        if len(mine) < candidates:
            heapq.heappush(events, (now + matching, trial))
    mean = statistics.mean(end - offset for end, offset in zip(ends, offsets, strict=True))
    return mean / (matching * candidates)


class Stand:
    """A worker that hands over snapshots as fast as it can: what is then slow is the driver."""

    def __init__(self, problem: Problem) -> None:
        self._trainer = ExpertTrainer(problem)
        self._vectors = [np.zeros(problem.network().num_params, np.float32)] * (problem.experts.snapshots + 1)

    def process_id(self) -> int:
        return 0

    def train_experts(self, experts: Sequence[int], experts_root: Place) -> Iterator[np.ndarray]:
        """No training."""
        # One by one: Ray sends answers into a streaming task, which a list's own iterator can't take.
        for vector in self._vectors:
            for _ in experts:
                yield vector


class Sleeper:
    """An evaluator that takes as long as a real one and no CPU; or a trial that does."""

    def validate(self, synthetic: Any, seconds: float) -> np.ndarray:
        time.sleep(seconds)
        return np.zeros(1)


def measured_slowdown(constants: Constants, trials: int, evaluators: int, candidates: int = 12) -> float:
    """The same of threads that sleep as long as a trial matches, and actors that sleep as long as one scores."""
    import ray

    crew = [ray.remote(Sleeper).options(num_cpus=0).remote() for _ in range(evaluators)]
    ray.get([actor.validate.remote(None, 0.0) for actor in crew])
    candidate = from_noise((1, 8, 8), 2, 1, 0.1, torch.Generator())
    matching, took = constants.every * constants.step_s, [0.0] * trials

    def trial(number: int) -> None:
        ask = [lambda arrays, one=one: one.validate.remote(None, constants.validation_s) for one in crew]
        scorer = RemoteScorer(ask, lambda arrays: np.zeros(1))
        time.sleep(matching * number / trials)
        started = time.perf_counter()
        for tag in range(candidates):
            time.sleep(matching)
            scorer.submit(tag + number, candidate)
        scorer.collect(wait=True)
        took[number] = time.perf_counter() - started

    threads = [threading.Thread(target=trial, args=(number,)) for number in range(trials)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for actor in crew:
        ray.kill(actor)
    return statistics.mean(took) / (matching * candidates)


def seconds_to_fill(problem: Problem, problem_ref: Any, members: list[Any], root: Path) -> float:
    started = time.perf_counter()
    fill_buffer(problem, Crew(problem_ref, members), Place(root), lambda done, wanted: None)
    return time.perf_counter() - started


def measure(scratch: Path) -> tuple[Constants, dict[str, Any]]:
    """The constants, and what they are checked against."""
    import ray

    from ptm_ray.stages.distill import Distillation
    from ptm_ray.stages.experts import store_of
    from ptm_ray.stages.scoring import Evaluator, InlineScorer
    from ptm_ray.store.checkpoints import RunFolder

    class Files:
        """Trajectories from the files that were just written."""

        num_experts = SETTINGS["experts"]["count"]

        def vector(self, expert: int, snapshot: int) -> Any:
            return store.read(expert).theta[snapshot]

    torch.set_num_threads(1)
    problem = Problem(cellphantom(), resolve(SETTINGS))
    count = problem.experts.count
    problem_ref = ray.put(problem)
    with Crew.start(problem_ref, 2) as crew:
        seconds_to_fill(problem, problem_ref, crew.members, scratch / "warm")
        taken = {n: seconds_to_fill(problem, problem_ref, crew.members[:n], scratch / str(n)) for n in (1, 2)}
    stands = [ray.remote(Stand).options(num_cpus=1).remote(problem_ref) for _ in range(2)]
    many = Problem(cellphantom(), resolve({**SETTINGS, "experts": {**SETTINGS["experts"], "count": 100}}))
    seconds_to_fill(many, problem_ref, stands, scratch / "warm stands")
    handed = seconds_to_fill(many, problem_ref, stands, scratch / "stands")
    for stand in stands:
        ray.kill(stand)
    store = store_of(problem, scratch / "2")
    evaluator = Evaluator(problem)
    run = Distillation(problem, Files(), InlineScorer(evaluator), RunFolder(scratch / "run"))
    started = time.perf_counter()
    list(run.run(stop_after=20))
    step_s = (time.perf_counter() - started) / 20
    now = run.learner.result()
    started = time.perf_counter()
    evaluator.validate((now.images, now.labels()))
    snapshots = problem.experts.snapshots + 1
    constants = Constants(
        expert_s=taken[1] / count,
        driver_s=handed / (100 * snapshots),
        snapshots=snapshots,
        snapshot_bytes=4 * store.params,
        step_s=step_s,
        validation_s=time.perf_counter() - started,
        every=run.validate_every,
    )
    per_hour = {n: 3600 * count / seconds for n, seconds in taken.items()}
    checks: dict[str, Any] = {
        f"experts per hour, {n} workers": {"measured": per_hour[n], "model": experts_per_hour(constants, n)}
        for n in (1, 2)
    }
    for trials, evaluators in ((2, 1), (8, 1), (8, 2)):
        checks[f"slowdown of {trials} trials with {evaluators} evaluators"] = {
            "measured": measured_slowdown(constants, trials, evaluators),
            "model": slowdown(constants, trials, evaluators, candidates=12),
        }
    return constants, checks


def table(constants: Constants) -> list[dict[str, Any]]:
    """The model's answers for each number of workers."""
    rows = []
    for workers in WORKERS:
        few, many = max(1, workers // 16), max(1, workers // 4)
        rows.append(
            {
                "workers": workers,
                "experts_per_hour": round(experts_per_hour(constants, workers)),
                "driver_busy": min(1.0, workers / constants.expert_s * constants.snapshots * constants.driver_s),
                "buffer_GB": EXPERTS * constants.snapshots * constants.snapshot_bytes / 1e9,
                "read_MB_per_s": 2e-6 * workers * constants.snapshot_bytes / constants.step_s,
                f"slowdown_1_evaluator_per_16_trials ({few})": round(slowdown(constants, workers, few), 2),
                f"slowdown_1_evaluator_per_4_trials ({many})": round(slowdown(constants, workers, many), 2),
            }
        )
    return rows


def faster(constants: Constants, factor: float) -> Constants:
    """Workers that compute so many times faster."""
    return replace(
        constants,
        expert_s=constants.expert_s / factor,
        step_s=constants.step_s / factor,
        validation_s=constants.validation_s / factor,
    )


def limits(constants: Constants) -> dict[str, float]:
    """Where each part is busy all the time."""
    return {
        "workers_that_keep_the_driver_busy": constants.expert_s / (constants.snapshots * constants.driver_s),
        "trials_that_keep_an_evaluator_busy": constants.every * constants.step_s / constants.validation_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faster", type=float, default=30.0, help="how many times faster than a core a GPU is")
    asked = parser.parse_args()
    with connected(2), tempfile.TemporaryDirectory() as scratch:
        constants, checks = measure(Path(scratch))
    found: dict[str, Any] = {"constants": asdict(constants), "checks": checks}
    for name, kind in (("cores", constants), (f"{asked.faster:g} times faster", faster(constants, asked.faster))):
        found[name] = {"limits": limits(kind), "table": table(kind)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
