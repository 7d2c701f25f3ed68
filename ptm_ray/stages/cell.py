"""One cell of a benchmark in one process: distil within the budget, then test the set under every condition.

What the networks predict is scored in another process, one for all cells: what that takes to load would cost each cell
five seconds, and count in its peak of memory.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptm_ray.config.suite import FULL, Cell, Condition, SuiteConfig
from ptm_ray.core.synthetic import Synthetic
from ptm_ray.core.trajectory import TrajectorySource
from ptm_ray.data import MedicalDataset
from ptm_ray.evaluation.metrics import score
from ptm_ray.evaluation.protocol import TrainingSet
from ptm_ray.evaluation.train import TrainRecipe
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.given import GivenSet
from ptm_ray.stages.memory import peak_memory
from ptm_ray.stages.mitigation import CycleRow
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.provenance import code_digest, processor
from ptm_ray.stages.scoring import Evaluator, InlineScorer
from ptm_ray.stages.staged_matching import subset_rows
from ptm_ray.store import atomic
from ptm_ray.store.checkpoints import RunFolder

#: One trained network: condition, network, evaluation_seed, its metrics, and what its cell cost.
Score = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tested:
    """One trained network, and its class probabilities for the test split: (n, classes) float32."""

    condition: Condition
    network: str
    evaluation_seed: int
    shares: np.ndarray


@dataclass(frozen=True)
class Cost:
    """What a finished cell took, and what made it; of cycles of overlap mitigation, where there can be some."""

    distillation_s: float
    outer_steps: int
    peak_memory_bytes: int
    code: str
    processor: str
    mitigated: dict[str, float | int]


def run_cell(
    problem: Problem,
    trajectories: TrajectorySource,
    folder: RunFolder,
    asked: SuiteConfig,
    cell: Cell,
    given: GivenSet | None = None,
) -> tuple[list[Tested], Cost]:
    """Every network that tests a cell's set, and what the cell cost.

    A cell that was stopped goes on from its folder's checkpoint. A set that is `given` is only tested. Its peak of
    memory is that of this process, of the GPU where it works on one.
    """
    testing = CellTesting(problem, asked)
    if asked.kind(cell.method) == FULL:
        tested = list(testing.full())
        return tested, _cost(problem, 0.0, 0, ())
    if given is not None:
        tested = list(testing.finished(given.synthetic(problem.device), learned=given.inner_lr is not None))
        return tested, _cost(problem, 0.0, 0, ())
    run = Distillation(problem, trajectories, InlineScorer(testing.evaluator), folder)
    early = folder.root / "equal-steps.npz"
    folder.place.pull(early.name)
    # What is paced by its run is in the middle of it then: later subsets, say, have not been learned at all.
    paced, wanted = problem.config.paced_by_run, asked.equal_steps is not None and "equal-steps" in asked.conditions
    for _ in run.run(None if asked.budget_minutes is None else 60 * asked.budget_minutes):
        if run.step == asked.equal_steps and wanted and not paced:
            _keep(early, testing.of("equal-steps", run.as_it_is()))
            folder.place.push(early.name)
    kept = run.selection.kept
    learned = (run.step if kept is None else kept.outer_step) > 0 and problem.config.learns_inner_lr
    tested = list(testing.finished(run.result(), learned=learned))
    tested += _kept(early, "equal-steps") if early.exists() else []
    if paced and wanted:
        tested += testing.of("equal-steps", _of_equal_steps(problem, trajectories, folder, asked))
    return tested, _cost(problem, run.elapsed_s, run.step, run.cycles)


def _cost(problem: Problem, seconds: float, steps: int, cycles: Sequence[CycleRow]) -> Cost:
    """Of a cell that this process has run."""
    device = problem.device
    return Cost(seconds, steps, peak_memory(device), code_digest(), processor(device), _mitigated(cycles))


def _of_equal_steps(
    problem: Problem, trajectories: TrajectorySource, folder: RunFolder, asked: SuiteConfig
) -> Synthetic:
    """The set of a run of its own, of so many outer steps in all."""
    config = problem.config.model_copy(update={"outer_steps": asked.equal_steps})
    short = replace(problem, config=config)
    run = Distillation(short, trajectories, InlineScorer(Evaluator(short)), RunFolder(folder.place / "equal-steps"))
    for _ in run.run():
        pass
    return run.as_it_is()


def scores(tested: Sequence[Tested], cost: Cost, dataset: MedicalDataset) -> Iterator[Score]:
    """The rows of the table that networks tested on the dataset's test split make."""
    labels = torch.tensor(dataset.test.labels)
    present = sorted({int(label) for label in dataset.test.labels})
    for one in tested:
        metrics = score(torch.tensor(one.shares), labels)
        recalls = [metrics[f"recall_{label}"] for label in present]
        yield {
            "condition": one.condition,
            "network": one.network,
            "evaluation_seed": one.evaluation_seed,
            **{name: value for name, value in metrics.items() if not name.startswith("recall_")},
            "worst_recall": min(recalls),
            "recalls": recalls,
            "distillation_s": cost.distillation_s,
            "outer_steps": cost.outer_steps,
            **cost.mitigated,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "code": cost.code,
            "processor": cost.processor,
        }


def _keep(path: Path, tested: Iterator[Tested]) -> None:
    """What networks of one condition predict, into a file."""
    arrays: dict[str, Any] = {f"{one.network}.{one.evaluation_seed}": one.shares for one in tested}
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _kept(path: Path, condition: Condition) -> list[Tested]:
    with np.load(path, allow_pickle=False) as held:
        names = [(*name.rsplit(".", 1), held[name]) for name in held.files]
    return [Tested(condition, network, int(seed), shares) for network, seed, shares in names]


def _mitigated(cycles: Sequence[CycleRow]) -> dict[str, float | int]:
    kept = [cycle for cycle in cycles if not cycle.undone]
    ratios = {"overlap_before": [c.overlap_before for c in kept], "overlap_after": [c.overlap_after for c in kept]}
    means = {name: statistics.fmean(values) for name, values in ratios.items() if values}
    return {"cycles": len(cycles), "cycles_kept": len(kept), **means}


class CellTesting:
    """Trains the evaluation networks of a cell, which predict the test split."""

    def __init__(self, problem: Problem, asked: SuiteConfig) -> None:
        self.evaluator = Evaluator(problem)
        self._settings, self._asked = problem.config.evaluation, asked
        self._subsets, self._seed = problem.config.subsets.count, problem.config.seed

    def full(self) -> Iterator[Tested]:
        """Of networks trained on all training images."""
        recipe = self.evaluator.recipe(self._settings.full_steps)
        yield from self._train("unified", [self.evaluator.full_set()], recipe)
        if "no-augmentation" in self._asked.conditions:
            yield from self._train("no-augmentation", [self.evaluator.full_set()], replace(recipe, ops=()))

    def finished(self, made: Synthetic, *, learned: bool) -> Iterator[Tested]:
        """Of a set as it is handed on; `learned` where its inner lr is."""
        soft = made.label_logits is not None
        skipped = {"equal-steps", *(() if soft else ("hard-labels", "twin")), *(() if learned else ("published",))}
        for condition in self._asked.conditions:
            if condition not in skipped:
                yield from self.of(condition, made)

    def of(self, condition: Condition, made: Synthetic) -> Iterator[Tested]:
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
                # Others for every set: one draw for all would be one finding, however many cells repeat it.
                draw = self._seed * self._asked.extra_seeds + seed
                images, _ = self.evaluator.random_set(len(made.images) // made.num_classes, draw)
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
    ) -> Iterator[Tested]:
        count = self._settings.seeds if condition == "unified" else self._asked.extra_seeds
        seeds = tuple(range(count)) if seeds is None else seeds
        for network in self._settings.networks:
            for seed, shares in zip(seeds, self.evaluator.test(network, train_on, recipe, seeds), strict=True):
                yield Tested(condition, network, seed, shares.cpu().numpy())
