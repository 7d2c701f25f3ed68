"""Sweeps with Ray Tune: trials are ordinary distillations on shared experts, scored by shared evaluators.

What could wait for each other is started in an order in which it can't: experts are trained and their workers gone
before trials begin; evaluators exist before trials and hold no CPU. An evaluator with a CPU of its own that a trial
asks for while trials hold every CPU is never started, and nothing says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ptm_ray.config import DistillConfig
from ptm_ray.config.sweep import SweepConfig
from ptm_ray.data import MedicalDataset
from ptm_ray.errors import ConfigError, WorkerFailed, without_folders
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.distill import distill
from ptm_ray.orchestrate.experts import experts_alone
from ptm_ray.orchestrate.outcome import run_identity, shared_name
from ptm_ray.orchestrate.session import await_nodes, connected, count_workers
from ptm_ray.orchestrate.trial import MEASURES, TIME, reported
from ptm_ray.orchestrate.tuner import run_trials
from ptm_ray.orchestrate.watcher import Nobody, Watcher
from ptm_ray.orchestrate.workers import SharedEvaluator
from ptm_ray.stages.experts import kinds_wanted
from ptm_ray.stages.problem import Problem
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

#: Seconds that evaluators may take to start.
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class SweepResult:
    """The best trial's settings, score by `metric` and set; how many trials there were; the table of all."""

    config: dict[str, Any]
    metric: str
    score: float
    set: Path | str
    trials: int
    failed: int
    table: Path | str

    def to_json(self) -> dict[str, Any]:
        """Plain values: the last line of `ptm-ray sweep --json`."""
        best = {"config": self.config, "score": self.score, "set": str(self.set)}
        return {"best": best, "trials": self.trials, "failed": self.failed, "table": str(self.table)}


def sweep(
    asked: SweepConfig,
    dataset: MedicalDataset,
    out: Place,
    *,
    experts_root: Place,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> SweepResult:
    """Trials of `asked` on one dataset, their table and pictures, and the best one's set, into `out`.

    An `out` that holds this very sweep is gone on with: trials from their last checkpoints. Raises `PtmError` of some
    kind for bad settings, images or folders, before any expert trains.
    """
    watcher = watcher or Nobody()
    for config in asked.check().corners():
        Problem(dataset, config).check()
    problems = [Problem(dataset, config).check() for config in asked.experts_wanted()]
    # Trials run in folders of their own.
    out, experts_root = out.absolute(), experts_root.absolute()
    with connected(workers):
        # Before the folder is claimed: what is refused here is mended in the file, which is then another sweep.
        gpus = asked.gpus_per_trial
        await_nodes(workers or 1, gpus)
        _require_resources(asked)
        there = count_workers(workers, gpus)
        named = asked.replace(settings={"data": shared_name(problems[0].config, dataset)})
        RunFolder(out).claim({"sweep": named.model_dump(mode="json"), "dataset": dataset.fingerprint})
        buffers = _buffers(problems, experts_root, there, gpus, watcher)
        # In a list, so that it arrives as a reference and images travel once a node.
        held = [ray.put(dataset)]
        evaluators = _evaluators(asked.evaluators)
        try:
            found = run_trials(asked, held, buffers, evaluators, out, workers, watcher)
        finally:
            for evaluator in evaluators:
                ray.kill(evaluator)
        rows = [_row(asked, result) for result in found]
        metric = reported(asked)
        # Trials import this file, but draw no pictures.
        from ptm_ray.report.sweep import write_sweep

        out.push(*write_sweep(out.local, rows, list(asked.space), metric))
        finished = [pair for pair in zip(rows, found, strict=True) if pair[0][metric] is not None]
        if not finished:
            raise WorkerFailed(f"no trial of {len(rows)} came to a score; the first one failed with {rows[0]['error']}")
        best, result = max(finished, key=lambda pair: pair[0][metric])
        chosen = {name: best[name] for name in asked.space}
        how: dict[str, Any] = {"experts_root": experts_root, "workers": workers, "gpus": gpus, "watcher": watcher}
        made = _export(asked.config(chosen), dataset, result.checkpoint, out / "best", **how)
    failed = sum(row["error"] is not None for row in rows)
    return SweepResult(chosen, asked.metric, best[metric], made, len(rows), failed, (out / "trials.parquet").shown)


def _require_resources(asked: SweepConfig) -> None:
    """Raises `ConfigError` where no node has what a trial holds: Tune would wait for one, silently and for good."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, wanted, setting in (
        ("CPU", asked.cpus_per_trial, "cpus_per_trial"),
        ("GPU", asked.gpus_per_trial, "gpus_per_trial"),
    ):
        most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise ConfigError(
                f"{setting} is {wanted:g}, but no node has more than {most:g} {kind}s; lower it or add a larger node"
            )


def _buffers(
    problems: list[Problem], root: Place, workers: int, gpus: float, watcher: Watcher
) -> dict[str, TrajectoryBuffer]:
    """The trajectories of every kind of expert, as many as any trial will ask for, by the name of their folder."""
    wanted = kinds_wanted(problems)
    return {key: experts_alone(problem, root, workers, watcher, gpus) for key, problem in wanted.items()}


def _evaluators(count: int) -> list[Any]:
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actors = [ray.remote(SharedEvaluator).options(**options).remote() for _ in range(count)]
    _, late = ray.wait([actor.ready.remote() for actor in actors], num_returns=count, timeout=START_LIMIT_S)
    if late:
        raise WorkerFailed(f"{len(late)} of {count} evaluators did not start within {START_LIMIT_S:g} s; is Ray well?")
    return actors


def _export(
    config: DistillConfig,
    dataset: MedicalDataset,
    checkpoint: Any,
    out: Place,
    **how: Any,
) -> Path | str:
    """The set of the trial that left this checkpoint, scored on the test split and written as any run's is.

    That is: a run without time for another step goes on from the checkpoint.
    """
    identity = run_identity(config, dataset)
    folder = RunFolder(out)
    if folder.holds_another(identity):
        # The best trial of this sweep before it was gone on with.
        out.remove()
    folder.claim(identity)
    # Somebody may have gone on with the run there: then it has come further.
    with checkpoint.as_directory() as made:
        folder.take_over(Path(made))
    return distill(config, dataset, out, budget_s=0.0, **how).set


def _row(asked: SweepConfig, result: Any) -> dict[str, Any]:
    """A trial in the table: its settings as they were used, what it reported last, what ended it."""
    measured = result.metrics or {}
    # Of a trial that never started, Tune does not tell the settings.
    chosen = result.config or {}
    used = {name: asked.value(name, chosen[name]) if name in chosen else None for name in asked.space}
    names = (*MEASURES, TIME, "kept_outer_step", "loss", "overlap", "cycles_kept", "distillation_s")
    error = None if result.error is None else without_folders(" ".join(str(result.error).split()))[-300:]
    return {"trial": measured.get("trial_id"), **used, **{name: measured.get(name) for name in names}, "error": error}
