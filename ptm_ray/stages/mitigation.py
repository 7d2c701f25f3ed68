"""Dynamic overlap mitigation as a run does it: looks, cycles of match → separate → retrain, and undoing them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ptm_ray.config.parts import OverlapSettings
from ptm_ray.core import overlap
from ptm_ray.core.distill import Learner, Separation
from ptm_ray.core.overlap import Cycle, Halves, Phase
from ptm_ray.core.params import Network
from ptm_ray.core.schedule import Progress
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import class_rows
from ptm_ray.core.types import Tensor
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.team import Team

#: Real images of each class that the overlap is measured against, at the least, where there are so many.
REAL_SAMPLE = 64
#: Share of the outer steps that cycles may take.
CYCLE_SHARE = 0.2
#: The overlap ratio at which halves are as varied as real ones: nothing is won by driving them further apart.
AS_VARIED = 1.0


@dataclass(frozen=True)
class CycleRow:
    """One cycle of overlap mitigation: what it did to overlap and validation accuracy, and whether it was kept."""

    cycle: int
    outer_step: int
    overlap_before: float
    overlap_after: float
    validation_before: float
    validation_after: float
    undone: bool


@dataclass
class _Before:
    """What a cycle that fails is undone to, and where its overlap was measured: it is measured there again.

    `progress` is the schedule's: what a set has not learned after all must not have moved it on.
    """

    learner: dict[str, Any]
    progress: list[Any]
    theta: Tensor
    outer_step: int
    overlap: float
    validation: float


class Mitigation:
    """Measures the overlap of the set every few outer steps and runs a cycle where it is too large.

    `validate` scores the set as it is now on the validation split, and has none kept that scores below what it is
    given; a cycle that leaves the set worse is undone.
    `validate_every`: outer steps between the run's own validations.
    """

    def __init__(
        self,
        problem: Problem,
        network: Network,
        seeds: Seeds,
        team: Team,
        validate: Callable[[float], float],
        validate_every: int,
    ) -> None:
        self._settings: OverlapSettings = problem.config.overlap
        cycle_steps = self._settings.separate_steps + self._settings.retrain_steps
        least = math.ceil((1 - CYCLE_SHARE) / CYCLE_SHARE * cycle_steps)
        self._look_every = self._settings.look_every or max(validate_every, least)
        self._enough = max(AS_VARIED, self._settings.threshold)
        self._half = problem.config.ipc // 2
        self._network, self._seeds, self._validate = network, seeds, validate
        # Ratios decide what comes next, and machines of several kinds round differently: one must decide for all.
        self._broadcast = team.broadcast
        self._cycle = Cycle(Phase.MATCH, self._look_every)
        self._halves: Halves | None = None
        self._before: _Before | None = None
        self._real = _real_sample(problem, max(REAL_SAMPLE, 2 * self._half), seeds)
        self.cycles: list[CycleRow] = []

    @property
    def phase(self) -> Phase:
        return self._cycle.phase

    @property
    def moving(self) -> Tensor | None:
        """Rows that may change now; None: all of them."""
        return None if self._halves is None else self._halves.moving

    def look(self, learner: Learner, theta: Tensor, outer_step: int, progress: Progress) -> float | None:
        """Where a look is due: the overlap ratio at θ; begins a cycle if the halves have become too alike."""
        if self.phase is not Phase.MATCH or self._cycle.left > 1:
            return None
        halves = overlap.split(learner.synthetic.classes, self._seeds.stream("halves", outer_step))
        ratio = self._measure(learner, theta, halves, outer_step)
        if ratio < self._settings.threshold:
            self._halves = halves
            score = self._validate(0.0)
            self._before = _Before(learner.state_dict(), list(progress), theta, outer_step, ratio, score)
            self._cycle = self._next(start=True)
        return ratio

    def separation(self) -> Separation | None:
        """What the outer step needs in the separate phase; None in the others.

        In one embedding for the whole phase, that of the look: halves that part there also part in the embeddings of
        other experts, while steps that each climb in another embedding cancel each other out.
        """
        if self.phase is not Phase.SEPARATE:
            return None
        assert self._halves is not None
        assert self._before is not None
        before = self._before
        real = self._references(before.theta, "overlap", before.outer_step)
        return Separation(self._halves, before.theta, real, self._settings.weight)

    def advance(self, learner: Learner, outer_step: int, ratio: float | None, progress: Progress) -> Progress:
        """Moves the cycle on by one outer step, in which the overlap ratio was `ratio` where it was separating.

        At the cycle's end, keeps it only if validation accuracy did not suffer. Returns where the schedule goes on: at
        `progress`, or where it stood before a cycle that is undone.
        """
        if self.phase is Phase.SEPARATE and (ratio := self._broadcast(ratio)) is not None and ratio >= self._enough:
            self._cycle = self._cycle._replace(left=1)
        last = Phase.RETRAIN if self._settings.retrain_steps else Phase.SEPARATE
        if self.phase is not last or self._cycle.left > 1:
            self._cycle = self._next(start=False)
            return progress
        assert self._before is not None
        assert self._halves is not None
        before = self._before
        after = self._measure(learner, before.theta, self._halves, before.outer_step)
        score = self._validate(before.validation)
        undone = score < before.validation
        number = self._cycle.number
        self.cycles.append(CycleRow(number, outer_step, before.overlap, after, before.validation, score, undone))
        if undone:
            learner.load_state_dict(before.learner)
            progress = Progress(*before.progress)
        self._halves, self._before = None, None
        self._cycle = self._next(start=False)
        return progress

    def state_dict(self) -> dict[str, Any]:
        """Where the cycle stands, as tensors and plain values."""
        return {
            "cycle": [str(self.phase), self._cycle.left, self._cycle.number],
            "halves": None if self._halves is None else list(self._halves),
            "before": None if self._before is None else vars(self._before),
            "cycles": [asdict(row) for row in self.cycles],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        phase, left, number = state["cycle"]
        self._cycle = Cycle(Phase(phase), left, number)
        self._halves = None if state["halves"] is None else Halves(*state["halves"])
        self._before = None if state["before"] is None else _Before(**state["before"])
        self.cycles = [CycleRow(**row) for row in state["cycles"]]

    def _next(self, *, start: bool) -> Cycle:
        # A cycle that came to nothing was time lost: the next waits twice as long.
        lost = next((k for k, cycle in enumerate(reversed(self.cycles)) if not cycle.undone), len(self.cycles))
        settings, wait = self._settings, self._look_every * 2**lost
        return overlap.next_phase(self._cycle, settings.separate_steps, settings.retrain_steps, wait, start)

    def _references(self, theta: Tensor, stage: str, outer_step: int) -> dict[int, overlap.Reference]:
        return overlap.references(self._network, theta, self._real, self._half, self._seeds.stream(stage, outer_step))

    def _measure(self, learner: Learner, theta: Tensor, halves: Halves, outer_step: int) -> float:
        # Of the set as it would be handed on.
        now, real = learner.result(), self._references(theta, "overlap", outer_step)
        with torch.no_grad():
            ratio = float(overlap.overlap_ratio(self._network, theta, now.images, now.classes, halves, real))
        return float(self._broadcast(ratio))


def applies(problem: Problem) -> bool:
    """Whether it is asked for and has anything to do: one image per class, synthetic or real, can't be split."""
    several_real = int(np.bincount(problem.dataset.train.labels).max()) > 1
    settings = problem.config.overlap
    return settings.enabled and settings.weight > 0 and problem.config.ipc > 1 and several_real


def _real_sample(problem: Problem, size: int, seeds: Seeds) -> dict[int, Tensor]:
    images, labels = problem.tensors("train")
    draw = seeds.stream("real sample")
    sample = {}
    for label in range(problem.dataset.num_classes):
        rows = class_rows(labels, label)
        sample[label] = images[rows[torch.randperm(len(rows), generator=draw)[:size]]]
    return sample
