"""Sweeps with Ray Tune: trials are ordinary distillations on shared experts, scored by shared evaluators.

What could wait for each other is started in an order in which it can't: experts are trained and their workers gone
before trials begin; evaluators exist before trials and hold no CPU. An evaluator with a CPU of its own that a trial
asks for while trials hold every CPU is never started, and nothing says so.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from pyarrow import fs
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from ptm_ray.config import DistillConfig
from ptm_ray.config.sweep import Dimension, Range, SweepConfig
from ptm_ray.data import MedicalDataset
from ptm_ray.errors import ConfigError, WorkerFailed, without_folders
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.distill import Nobody, Watcher, distill, experts_alone, run_identity
from ptm_ray.orchestrate.session import await_nodes, connected, count_workers
from ptm_ray.orchestrate.workers import RemoteScorer, SharedEvaluator, device_with, validate_here
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.experts import kinds_wanted, store_of
from ptm_ray.stages.matching import Row
from ptm_ray.stages.memory import keep_memory
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Evaluator
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)

#: What trials report of the set that would be kept, on validation images.
MEASURES = ("validation_balanced_accuracy", "validation_accuracy", "validation_worst_recall")
#: Trials are compared at equal numbers of these.
TIME = "outer_step"
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
    asked.check()
    problems = [Problem(dataset, config).check() for config in asked.experts_wanted()]
    # Trials run in folders of their own.
    out, experts_root = out.absolute(), experts_root.absolute()
    with connected(workers):
        # Before the folder is claimed: what is refused here is mended in the file, which is then another sweep.
        gpus = asked.gpus_per_trial
        await_nodes(workers or 1, gpus)
        _require_resources(asked)
        there = count_workers(workers, gpus)
        RunFolder(out).claim({"sweep": asked.model_dump(mode="json"), "dataset": dataset.fingerprint})
        buffers = _buffers(problems, experts_root, there, gpus, watcher)
        # In a list, so that it arrives as a reference and images travel once a node.
        held = [ray.put(dataset)]
        evaluators = _evaluators(asked.evaluators)
        try:
            found = _trials(asked, held, buffers, evaluators, out, workers, watcher)
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


def reported(asked: SweepConfig) -> str:
    """The name under which trials report what they are compared by."""
    return f"validation_{asked.metric}"


def _enough(name: str, stop_at: float, trial_id: str, result: dict[str, Any]) -> bool:
    score = result.get(name)
    return score is not None and score >= stop_at


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


def trial(
    chosen: dict[str, Any],
    asked: SweepConfig,
    dataset: list[Any],
    buffers: dict[str, TrajectoryBuffer],
    evaluators: list[Any],
) -> None:
    """One trial: a distillation that reports its validation score whenever there is a new one, with a checkpoint."""
    torch.set_num_threads(max(1, int(asked.cpus_per_trial)))
    keep_memory()
    config = asked.config(chosen)
    problem = Problem(ray.get(dataset[0]), config).check().on(device_with(asked.gpus_per_trial))
    buffer = buffers[store_of(problem, "").key].first(config.experts.count)
    ask = [partial(evaluator.validate.remote, dataset, config) for evaluator in evaluators]
    scorer = RemoteScorer(ask, partial(validate_here, Evaluator(problem)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        if (checkpoint := tune.get_checkpoint()) is not None:
            with checkpoint.as_directory() as held:
                folder.take_over(Path(held))
        run = Distillation(problem, buffer, scorer, folder)
        told, row = len(run.selection.scores), None
        for row in run.run(None if asked.budget_minutes is None else 60 * asked.budget_minutes):
            if len(run.selection.scores) > told:
                run.checkpoint()
                told = len(run.selection.scores)
                _report(run, row, folder)
        # The last validation follows the last step.
        _report(run, row, folder)


def _report(run: Distillation, row: Row | None, folder: RunFolder) -> None:
    kept, scores = run.selection.kept, run.selection.measures()
    now = {} if row is None else {"loss": row.loss, "end": row.end, "inner_lr": row.inner_lr}
    measured = {
        **{name: scores.get(name.removeprefix("validation_")) for name in MEASURES},
        TIME: run.step,
        "kept_outer_step": 0 if kept is None else kept.outer_step,
        "overlap": next((r.overlap for r in reversed(run.rows) if r.overlap is not None), None),
        "cycles_kept": sum(not cycle.undone for cycle in run.cycles),
        "distillation_s": run.elapsed_s,
        **now,
    }
    tune.report(measured, checkpoint=tune.Checkpoint.from_directory(str(folder.root)))


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
    held = folder.load_checkpoint()
    with checkpoint.as_directory() as made:
        left = RunFolder(Path(made)).load_checkpoint()
        # Somebody may have gone on with the run there.
        if held is None or left is None or held["step"] <= left["step"]:
            folder.take_over(Path(made))
    return distill(config, dataset, out, budget_s=0.0, **how).set


def _trials(
    asked: SweepConfig,
    dataset: list[Any],
    buffers: dict[str, TrajectoryBuffer],
    evaluators: list[Any],
    out: Place,
    workers: int | None,
    watcher: Watcher,
) -> list[Any]:
    """Runs the trials, or goes on with those that are unfinished; their results in the order of their names."""
    parts = {"asked": asked, "dataset": dataset, "buffers": buffers, "evaluators": evaluators}
    trainable = tune.with_resources(
        tune.with_parameters(trial, **parts), {"cpu": asked.cpus_per_trial, "gpu": asked.gpus_per_trial}
    )
    storage, filesystem = (out / "tune").for_ray()
    held = f"{storage}/trials"
    Told.watcher = watcher
    if _can_go_on(held, filesystem):
        tuner = tune.Tuner.restore(
            held, trainable=trainable, storage_filesystem=filesystem, resume_unfinished=True, restart_errored=True
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={name: domain(dimension, asked.searcher) for name, dimension in asked.space.items()},
            tune_config=tune.TuneConfig(
                metric=reported(asked),
                mode="max",
                num_samples=asked.trials,
                search_alg=_searcher(asked),
                scheduler=_scheduler(asked),
                max_concurrent_trials=concurrent_trials(asked, workers),
                trial_dirname_creator=lambda made: f"trial-{made.trial_id}",
                # A process takes seconds to import what a trial needs, and a population's trials change hands often.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=storage,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[Told(asked.number_of_trials(), reported(asked))],
                stop=None if asked.stop_at is None else partial(_enough, reported(asked), asked.stop_at),
                failure_config=tune.FailureConfig(max_failures=asked.max_failures),
                # A population's trials copy each other's, which must not be deleted in between.
                checkpoint_config=tune.CheckpointConfig(num_to_keep=None if asked.scheduler == "pbt" else 1),
            ),
        )
    # Tune's newer reporter greets whatever it is told, and names a temporary folder; the older one keeps quiet. What
    # either says on standard output, which is for results, goes to standard error.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # After Ctrl-C Tune returns as if the trials were finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    with contextlib.redirect_stdout(sys.stderr):
        found = list(tuner.fit())
    # Tune has another order once it was restored, and of equally good trials the first one's set is exported.
    return sorted(found, key=lambda result: result.path)


def _can_go_on(held: str, filesystem: fs.FileSystem | None) -> bool:
    """Whether Tune can go on with what it left there.

    It writes its state in place: a driver that is killed meanwhile leaves half of it, from which Tune would begin
    again, and without the space. What is damaged is removed; an earlier state, or the sweep's start, then counts.
    """
    there, intact = filesystem or fs.LocalFileSystem(), False
    for file in there.get_file_info(fs.FileSelector(held, allow_not_found=True)):
        if fnmatch(file.base_name, TuneController.CKPT_FILE_TMPL.format("*")):
            with there.open_input_stream(file.path) as stream:
                text = stream.readall()
            try:
                json.loads(text)
                intact = True
            except ValueError:
                log.warning("%s is damaged, and left out", file.base_name)
                there.delete_file(file.path)
    return intact and tune.Tuner.can_restore(held, filesystem)


def concurrent_trials(asked: SweepConfig, workers: int | None) -> int:
    """As many as the cluster's CPUs and GPUs hold at once; with `workers`, as so many of its CPUs do."""
    there = ray.cluster_resources()
    cpus = there.get("CPU", 1.0)
    fits = [(cpus if workers is None else min(cpus, workers)) / asked.cpus_per_trial]
    if asked.gpus_per_trial:
        fits.append(there.get("GPU", 0.0) / asked.gpus_per_trial)
    return max(1, int(min(fits)))


def domain(dimension: Dimension, searcher: str) -> Any:
    """A dimension of the space in Tune's words."""
    if isinstance(dimension, Range):
        if dimension.integer:
            draw = tune.lograndint if dimension.log else tune.randint
            return draw(int(dimension.low), int(dimension.high) + 1)
        return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)
    return tune.grid_search(list(dimension)) if searcher == "grid" else tune.choice(list(dimension))


def _searcher(asked: SweepConfig) -> Any:
    if asked.searcher == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=asked.seed)
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(random_state=np.random.RandomState(asked.seed))


def _scheduler(asked: SweepConfig) -> TrialScheduler | None:
    if asked.scheduler == "asha":
        return ASHAScheduler(time_attr=TIME, grace_period=asked.grace, max_t=10**9)
    if asked.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr=TIME,
            perturbation_interval=asked.grace,
            hyperparam_mutations={
                name: domain(dimension, "random") if isinstance(dimension, Range) else list(dimension)
                for name, dimension in asked.space.items()
            },
            synch=False,
        )
    return None


class Told(tune.Callback):  # type: ignore[misc]
    """Tells the watcher how far the trials are.

    Tune keeps its callbacks with the trials and brings them back when these are gone on with, which a watcher, a
    terminal's bars, can't be: hence it is the class's.
    """

    watcher: Watcher = Nobody()

    def __init__(self, total: int, metric: str) -> None:
        self._total, self._metric = total, metric

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **_: Any
    ) -> None:
        self._show(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._show(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._show(trials)

    def _show(self, trials: list[Any]) -> None:
        done = sum(trial.is_finished() for trial in trials)
        scores = [score for trial in trials if (score := trial.last_result.get(self._metric)) is not None]
        best = f", best {100 * max(scores):.1f} %" if scores else ""
        self.watcher.update("trials", done, self._total, f"{done} of {self._total} finished{best}")


def _row(asked: SweepConfig, result: Any) -> dict[str, Any]:
    """A trial in the table: its settings as they were used, what it reported last, what ended it."""
    measured = result.metrics or {}
    # Of a trial that never started, Tune does not tell the settings.
    chosen = result.config or {}
    used = {name: asked.value(name, chosen[name]) if name in chosen else None for name in asked.space}
    names = (*MEASURES, TIME, "kept_outer_step", "loss", "overlap", "cycles_kept", "distillation_s")
    error = None if result.error is None else without_folders(" ".join(str(result.error).split()))[-300:]
    return {"trial": measured.get("trial_id"), **used, **{name: measured.get(name) for name in names}, "error": error}
