"""One trial of a sweep: an ordinary distillation that tells Tune how it scores, with a checkpoint."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from ptm_ray.config.sweep import SweepConfig
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.workers import RemoteScorer, device_with, validate_here
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.experts import store_of
from ptm_ray.stages.matching import Row
from ptm_ray.stages.memory import keep_memory
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Evaluator
from ptm_ray.store.checkpoints import RunFolder

#: What trials report of the set that would be kept, on validation images.
MEASURES = ("validation_balanced_accuracy", "validation_accuracy", "validation_worst_recall")
#: Trials are compared at equal numbers of these.
TIME = "outer_step"


def reported(asked: SweepConfig) -> str:
    """The name under which trials report what they are compared by."""
    return f"validation_{asked.metric}"


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
    buffer = buffers[store_of(problem, "").key].first(config.num_experts)
    ask = [partial(evaluator.validate.remote, dataset, config) for evaluator in evaluators]
    scorer = RemoteScorer(ask, partial(validate_here, Evaluator(problem)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        if (checkpoint := tune.get_checkpoint()) is not None:
            with checkpoint.as_directory() as held:
                folder.take_over(Path(held))
        run = Distillation(problem, buffer, scorer, folder)
        reported_scores, row = len(run.selection.scores), None
        for row in run.run(None if asked.budget_minutes is None else 60 * asked.budget_minutes):
            if len(run.selection.scores) > reported_scores:
                run.checkpoint()
                reported_scores = len(run.selection.scores)
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
