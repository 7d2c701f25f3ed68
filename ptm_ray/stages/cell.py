"""One cell of a benchmark in one process: distil within the budget, then score the set under every condition."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ptm_ray.config.suite import FULL, Cell, Condition, SuiteConfig
from ptm_ray.core.synthetic import Synthetic
from ptm_ray.core.trajectory import TrajectorySource
from ptm_ray.evaluation.protocol import TrainingSet
from ptm_ray.evaluation.train import TrainRecipe
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.memory import peak_memory
from ptm_ray.stages.mitigation import CycleRow
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Evaluator, InlineScorer
from ptm_ray.stages.staged_matching import subset_rows
from ptm_ray.store import atomic
from ptm_ray.store.checkpoints import RunFolder

#: One trained network: condition, network, evaluation_seed and its metrics.
Score = dict[str, Any]


def run_cell(
    problem: Problem, trajectories: TrajectorySource, folder: RunFolder, asked: SuiteConfig, cell: Cell
) -> list[Score]:
    """Every score of a cell, with what it cost.

    A cell that was stopped goes on from its folder's checkpoint. `peak_memory_bytes` is that of this process, of the
    GPU where it works on one.
    """
    scoring = CellScoring(problem, asked)
    if asked.kind(cell.method) == FULL:
        scores, cost = list(scoring.full()), {"distillation_s": 0.0, "outer_steps": 0}
    else:
        run = Distillation(problem, trajectories, InlineScorer(scoring.evaluator), folder)
        early = folder.root / "equal-steps.json"
        for _ in run.run(None if asked.budget_minutes is None else 60 * asked.budget_minutes):
            if run.step == asked.equal_steps and "equal-steps" in asked.conditions:
                atomic.write_text(early, json.dumps(list(scoring.of("equal-steps", run.result()))))
        scores = list(scoring.finished(run.result(), learned=run.step > 0))
        scores += json.loads(early.read_text()) if early.exists() else []
        cost = {"distillation_s": run.elapsed_s, "outer_steps": run.step, **_mitigated(run.cycles)}
    return [{**score, **cost, "peak_memory_bytes": peak_memory(problem.device)} for score in scores]


def _mitigated(cycles: list[CycleRow]) -> dict[str, float | int]:
    kept = [cycle for cycle in cycles if not cycle.undone]
    ratios = {"overlap_before": [c.overlap_before for c in kept], "overlap_after": [c.overlap_after for c in kept]}
    means = {name: statistics.fmean(values) for name, values in ratios.items() if values}
    return {"cycles": len(cycles), "cycles_kept": len(kept), **means}


class CellScoring:
    """Trains and scores the evaluation networks of a cell."""

    def __init__(self, problem: Problem, asked: SuiteConfig) -> None:
        self.evaluator = Evaluator(problem)
        self._settings, self._asked = problem.config.evaluation, asked
        self._subsets = problem.config.subsets.count
        self._tested = sorted({int(label) for label in problem.dataset.test.labels})

    def full(self) -> Iterator[Score]:
        """Of networks trained on all training images."""
        recipe = self.evaluator.recipe(self._settings.full_steps)
        yield from self._train("unified", [self.evaluator.full_set()], recipe)
        if "no-augmentation" in self._asked.conditions:
            yield from self._train("no-augmentation", [self.evaluator.full_set()], replace(recipe, ops=()))

    def finished(self, made: Synthetic, *, learned: bool) -> Iterator[Score]:
        """Of a set as it is handed on; `learned` where it is more than the images that it began as."""
        soft = made.label_logits is not None
        skipped = {"equal-steps", *(() if soft else ("hard-labels", "twin")), *(() if learned else ("published",))}
        for condition in self._asked.conditions:
            if condition not in skipped:
                yield from self.of(condition, made)

    def of(self, condition: Condition, made: Synthetic) -> Iterator[Score]:
        """Of a set under one condition."""
        recipe = self.evaluator.recipe(self._settings.steps)
        train_on: TrainingSet = (made.images, made.labels())
        if condition == "published":
            # Half the steps at the learned rate, half at a tenth of it, as MTT has it. Where it is learned by place, at
            # the one half way along: either end may be where no segment of this set was.
            recipe = replace(recipe, lr=float(made.log_lr.exp()), decay_share=0.5)
            yield from self._train(condition, self._in_sequence(made), recipe)
            return
        elif condition == "no-augmentation":
            recipe = replace(recipe, ops=())
        elif condition == "hard-labels":
            train_on = (made.images, self.evaluator.one_hot(made.classes))
        if condition == "twin":
            for seed in range(self._asked.extra_seeds):
                images, _ = self.evaluator.random_set(len(made.images) // made.num_classes, seed)
                yield from self._train(condition, [(images, made.labels())], recipe, (seed,))
        else:
            yield from self._train(condition, [train_on], recipe)

    def _in_sequence(self, made: Synthetic) -> list[TrainingSet]:
        """The set as its method publishes it: where subsets were learned one after another, the first, then the first
        two, and so on.
        """
        subsets = subset_rows(made.classes, self._subsets)
        rows = [torch.cat(subsets[: number + 1]).sort().values for number in range(len(subsets))]
        return [(made.images[own], made.labels()[own]) for own in rows]

    def _train(
        self,
        condition: Condition,
        train_on: Sequence[TrainingSet],
        recipe: TrainRecipe,
        seeds: tuple[int, ...] | None = None,
    ) -> Iterator[Score]:
        count = self._settings.seeds if condition == "unified" else self._asked.extra_seeds
        seeds = tuple(range(count)) if seeds is None else seeds
        for network in self._settings.networks:
            for seed, metrics in zip(seeds, self.evaluator.test(network, train_on, recipe, seeds), strict=True):
                recalls = [metrics[f"recall_{label}"] for label in self._tested]
                yield {
                    "condition": condition,
                    "network": network,
                    "evaluation_seed": seed,
                    **{name: value for name, value in metrics.items() if not name.startswith("recall_")},
                    "worst_recall": min(recalls),
                    "recalls": recalls,
                }
