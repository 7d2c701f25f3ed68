"""A sweep in Tune's words: its space, searcher and scheduler, and how it is gone on with."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

import numpy as np
import ray
from pyarrow import fs
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from ptm_ray.config.sweep import Dimension, Range, SweepConfig
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.trial import TIME, reported, trial
from ptm_ray.orchestrate.watcher import Nobody, Watcher
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)


def run_trials(
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
    # A population takes turns on the CPUs, paused trials among it: a limit would let no more trials into it than fit.
    at_once = asked.trials if asked.scheduler == "pbt" else concurrent_trials(asked, workers)
    ShownTrials.watcher, Variants.at_once = watcher, at_once
    if _can_go_on(held, filesystem):
        tuner = tune.Tuner.restore(
            held, trainable=trainable, storage_filesystem=filesystem, resume_unfinished=True, resume_errored=True
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
                # Which Tune heeds for optuna alone.
                max_concurrent_trials=at_once if asked.searcher == "optuna" else None,
                trial_dirname_creator=lambda made: f"trial-{made.trial_id}",
                # A process takes seconds to import what a trial needs, and a population's trials change hands often.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=storage,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[ShownTrials(asked.number_of_trials(), reported(asked))],
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


def _enough(name: str, stop_at: float, trial_id: str, result: dict[str, Any]) -> bool:
    score = result.get(name)
    return score is not None and score >= stop_at


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
    return Variants(random_state=np.random.RandomState(asked.seed))


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


class Variants(BasicVariantGenerator):  # type: ignore[misc]
    """Combinations or random draws, so many of them at once.

    Tune brings it back when the trials are gone on with; how many that call has room for is the class's.
    """

    at_once = 1

    def next_trial(self) -> Any:
        """One more, where there is room."""
        return super().next_trial() if len(self._live_trials) < self.at_once else None

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where it ended, as far as it can be known what had."""
        # Of those that ended while Tune wrote its state it hears nothing more: they would count for good.
        super().set_state({**state, "_live_trials": set()})


class ShownTrials(tune.Callback):  # type: ignore[misc]
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
