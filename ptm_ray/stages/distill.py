"""The loop of a distillation in one process: match, look at the overlap, validate, checkpoint, stop in time.

Every random draw comes from a seed stream named by the outer step, so a checkpoint needs no generator state, and a
run that was stopped and resumed gives the same images, bit for bit, as one that never was.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from ptm_ray.core import overlap
from ptm_ray.core.distill import Learner, OuterRates, Separation, outer_step
from ptm_ray.core.overlap import Cycle, Halves, Phase
from ptm_ray.core.schedule import (
    ByCount,
    ByProgress,
    Progress,
    RandomSegments,
    Schedule,
    Segment,
    student_steps,
)
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Synthetic, class_rows, from_noise, from_real, inner_batches
from ptm_ray.core.trajectory import Vector
from ptm_ray.core.unroll import steps_that_fit
from ptm_ray.errors import DivergedError
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Scorer
from ptm_ray.store.checkpoints import RunFolder

#: Real images of each class that the overlap is measured against.
REAL_SAMPLE = 64
#: Seconds between two checkpoints.
CHECKPOINT_EVERY_S = 20.0


class TrajectorySource(Protocol):
    """Snapshots by expert and number, from the object store or from files."""

    @property
    def num_experts(self) -> int: ...

    def vector(self, expert: int, snapshot: int) -> Vector: ...


@dataclass(frozen=True)
class Row:
    """What happened in one outer step; the run's history is made of these."""

    outer_step: int
    start: int
    end: int
    student_steps: int
    loss: float
    inner_lr: float
    skipped: bool
    phase: str
    overlap: float | None
    elapsed_s: float


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


def make_schedule(problem: Problem) -> Schedule:
    """The schedule that the settings describe."""
    settings, last = problem.config.schedule, problem.experts.snapshots
    end_max = settings.end_max or last
    if settings.kind == "progress":
        return ByProgress(settings.end_min, end_max, settings.threshold, settings.patience)
    if settings.kind == "count":
        return ByCount(settings.end_min, end_max, settings.growth, settings.shape)
    start_max = settings.start_max if settings.start_max is not None else last - settings.length
    return RandomSegments(start_max, settings.length)


def initial_set(problem: Problem, seeds: Seeds) -> Synthetic:
    """The synthetic set before the first update."""
    config, data = problem.config, problem.dataset
    lr, draw = config.first_inner_lr(), seeds.stream("initial images")
    if config.images.init == "noise":
        shape = (data.channels, data.resolution, data.resolution)
        synthetic = from_noise(shape, data.num_classes, config.ipc, lr, draw)
    else:
        resample = config.images.init == "real-resampled"
        images, labels = problem.tensors("train")
        synthetic = from_real(images, labels, config.ipc, data.class_names, lr, draw, replacement=resample)
    if config.images.soft_labels:
        # Softened enough that the gradient of the softmax is not lost in rounding, sharp enough to stay the label.
        synthetic.label_logits = 5.0 * torch.nn.functional.one_hot(synthetic.classes, data.num_classes).float()
    return synthetic


@dataclass
class Best:
    """The set with the best validation score so far; `tag` counts the candidates."""

    tag: int
    outer_step: int
    score: float
    state: dict[str, Any]


class Distillation:
    """A distillation under way. `run` is the loop; everything it needs to go on is in `state_dict`."""

    def __init__(self, problem: Problem, trajectories: TrajectorySource, scorer: Scorer, folder: RunFolder) -> None:
        config = problem.config
        self.problem, self.trajectories, self.scorer, self.folder = problem, trajectories, scorer, folder
        self.network = problem.network()
        self.seeds = Seeds(config.seed)
        self.schedule = make_schedule(problem)
        images = config.images
        rates = OuterRates(
            images.optimiser, images.lr, images.inner_lr_lr, images.label_lr, images.ema, images.explode_at
        )
        self.learner = Learner(initial_set(problem, self.seeds), rates)
        self.ops = problem.ops if images.augment else ()
        self.step = 0
        self.elapsed_s = 0.0
        self.progress = self.schedule.begin()
        self.cycle = Cycle(Phase.MATCH, config.overlap.look_every)
        self.halves: Halves | None = None
        self.rollback: dict[str, Any] | None = None
        self.best: Best | None = None
        self.rows: list[Row] = []
        self.cycles: list[CycleRow] = []
        self.skipped_in_a_row = 0
        self.scores: list[tuple[int, float]] = []
        self.submitted = 0
        self._waiting: dict[int, dict[str, Any]] = {}
        self._keep: dict[tuple[int, int], int] = {}
        self._real = self._real_sample() if self.mitigates_overlap else {}
        saved = folder.load_checkpoint()
        if saved is not None:
            self.load_state_dict(saved)

    @property
    def mitigates_overlap(self) -> bool:
        """One image per class has nothing to split: the module stays out."""
        return self.problem.config.overlap.enabled and self.problem.config.ipc > 1

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on, as tensors and plain values."""
        halves = None if self.halves is None else [self.halves.moving, self.halves.standing]
        return {
            "learner": self.learner.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "progress": list(self.progress),
            "cycle": [str(self.cycle.phase), self.cycle.left, self.cycle.number],
            "halves": halves,
            "rollback": self.rollback,
            "best": None if self.best is None else vars(self.best),
            "rows": [asdict(row) for row in self.rows],
            "cycles": [asdict(row) for row in self.cycles],
            "scores": self.scores,
            "submitted": self.submitted,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to where a checkpoint was made."""
        self.learner.load_state_dict(state["learner"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.progress = Progress(*state["progress"])
        phase, left, number = state["cycle"]
        self.cycle = Cycle(Phase(phase), left, number)
        self.halves = None if state["halves"] is None else Halves(*state["halves"])
        self.rollback = state["rollback"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self.rows = [Row(**row) for row in state["rows"]]
        self.cycles = [CycleRow(**row) for row in state["cycles"]]
        self.scores = [(step, score) for step, score in state["scores"]]
        self.submitted = state["submitted"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, budget_s: float | None = None, stop_after: int | None = None) -> Iterator[Row]:
        """Yields a row after every outer step, until the settings' outer steps or the budget are spent.

        `budget_s` counts the run's own wall time, over resumptions. `stop_after` ends this call after so many outer
        steps. A checkpoint is written every few seconds and at the end; the initial set counts as a candidate too, so
        that a run never hands on anything worse on validation than what it began with.
        """
        last = time.monotonic()
        saved = last
        if self.step == 0:
            self._submit()
        until = self.problem.config.outer_steps if stop_after is None else self.step + stop_after
        while self.step < min(until, self.problem.config.outer_steps):
            if budget_s is not None and self.elapsed_s >= budget_s:
                break
            row = self._one_step()
            now = time.monotonic()
            self.elapsed_s, last = self.elapsed_s + now - last, now
            self.rows.append(row)
            yield row
            last = time.monotonic()
            if now - saved > CHECKPOINT_EVERY_S:
                self._checkpoint()
                saved = now
        self._checkpoint()
        if stop_after is None and self.step % self.problem.config.evaluation.validate_every:
            # After the checkpoint: a run that is resumed with more time must not remember where it once ended.
            self._submit()
            self._collect(wait=True)

    def result(self) -> Synthetic:
        """The set that did best on validation."""
        if self.best is None:
            return self.learner.result()
        kept = self.best.state
        now = self.learner.synthetic
        return Synthetic(kept["images"], now.classes.clone(), kept["log_lr"], now.num_classes, kept["label_logits"])

    def _one_step(self) -> Row:
        config, step = self.problem.config, self.step
        draw = self.seeds.stream("segment", step)
        segment = self.schedule.segment(self.progress, draw)
        expert = int(torch.randint(self.trajectories.num_experts, (), generator=draw))
        start, end = (torch.from_numpy(self.trajectories.vector(expert, k).copy()) for k in segment)
        steps = self._student_steps(segment)
        batches = inner_batches(
            len(self.learner.synthetic.images),
            config.student.batch_size,
            steps,
            self.ops,
            self.seeds.stream("inner batches", step),
        )
        looked = self._look(end)
        phase = self.cycle.phase
        separation = self._separation(end) if phase is Phase.SEPARATE else None
        moving = self.halves.moving if phase is not Phase.MATCH and self.halves is not None else None
        metrics = outer_step(
            self.network,
            self.learner,
            start,
            end,
            batches,
            keep=self._kept_graphs(start, steps, batches),
            separation=separation,
            moving=moving,
        )
        self._count_skipped(metrics.skipped, metrics.loss)
        if not metrics.skipped:
            self.progress = self.schedule.advance(self.progress, step, metrics.loss)
        self._end_of_cycle(end)
        self.step += 1
        if self.step % config.evaluation.validate_every == 0:
            self._submit()
        return Row(
            step,
            segment.start,
            segment.end,
            steps,
            metrics.loss,
            metrics.inner_lr,
            metrics.skipped,
            str(phase),
            metrics.overlap if looked is None else looked,
            self.elapsed_s,
        )

    def _student_steps(self, segment: Segment) -> int:
        student = self.problem.config.student
        return student_steps(segment, student.steps_per_snapshot, student.steps_min, student.steps_max)

    def _kept_graphs(self, start: torch.Tensor, steps: int, batches: list[Any]) -> int:
        key = (steps, len(batches[0].rows))
        if key not in self._keep:
            budget = self.problem.config.student.memory_mib * 2**20
            now = self.learner.synthetic
            self._keep[key] = steps_that_fit(budget, self.network, start, now.images, now.labels(), batches)
        return self._keep[key]

    def _count_skipped(self, skipped: bool, loss: float) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        most = self.problem.config.images.max_skipped
        if self.skipped_in_a_row > most:
            alpha = math.exp(float(self.learner.synthetic.log_lr))
            raise DivergedError(
                f"{most} updates in a row were skipped (matching loss {loss:.3g}, inner lr down to {alpha:.3g}): "
                "the student diverges on these experts; lower experts.lr or student.inner_lr, or take more snapshots"
            )

    # -- validation ----------------------------------------------------------------------------------------------

    def _submit(self) -> float | None:
        """Hands the set to the scorer; returns its score where that is known at once."""
        tag, candidate = self.submitted, self.learner.result()
        self.submitted += 1
        self._waiting[tag] = {
            "step": self.step,
            "images": candidate.images,
            "log_lr": candidate.log_lr,
            "label_logits": candidate.label_logits,
        }
        self.scorer.submit(tag, candidate)
        return self._collect(wait=False).get(tag)

    def _collect(self, wait: bool) -> dict[int, float]:
        scored = dict(self.scorer.collect(wait))
        for tag, score in scored.items():
            state = self._waiting.pop(tag)
            self.scores.append((state.pop("step"), score))
            # Of equals the later one: it has learned more that validation could not tell apart.
            if self.best is None or (score, tag) >= (self.best.score, self.best.tag):
                self.best = Best(tag, self.scores[-1][0], score, state)
        return scored

    def _score_now(self) -> float:
        """The validation score of the set as it is, waited for."""
        tag, now = self.submitted, self._submit()
        return self._collect(wait=True)[tag] if now is None else now

    def _checkpoint(self) -> None:
        self._collect(wait=True)
        self.folder.save_checkpoint(self.state_dict())

    # -- overlap -------------------------------------------------------------------------------------------------

    def _real_sample(self) -> dict[int, torch.Tensor]:
        images, labels = self.problem.tensors("train")
        draw = self.seeds.stream("real sample")
        sample = {}
        for label in range(self.problem.dataset.num_classes):
            rows = class_rows(labels, label)
            sample[label] = images[rows[torch.randperm(len(rows), generator=draw)[:REAL_SAMPLE]]]
        return sample

    def _references(self, theta: torch.Tensor, stage: str) -> dict[int, overlap.Reference]:
        half = self.problem.config.ipc // 2
        return overlap.references(self.network, theta, self._real, half, self.seeds.stream(stage, self.step))

    def _measure(self, theta: torch.Tensor, halves: Halves) -> float:
        now = self.learner.synthetic
        with torch.no_grad():
            real = self._references(theta, "overlap")
            return float(overlap.overlap_ratio(self.network, theta, now.images, now.classes, halves, real))

    def _look(self, theta: torch.Tensor) -> float | None:
        """Where a look is due: measures the overlap, and begins a cycle if the halves have become alike."""
        settings = self.problem.config.overlap
        if not self.mitigates_overlap or self.cycle.phase is not Phase.MATCH or self.cycle.left > 1:
            return None
        halves = overlap.split(self.learner.synthetic.classes, self.seeds.stream("halves", self.step))
        ratio = self._measure(theta, halves)
        if ratio < settings.threshold:
            self.halves = halves
            self.rollback = {
                "learner": self.learner.state_dict(),
                "overlap": ratio,
                "validation": self._score_now(),
                "step": self.step,
            }
            self.cycle = self._next(start=True)
        return ratio

    def _separation(self, theta: torch.Tensor) -> Separation | None:
        if self.halves is None:
            return None
        real = self._references(theta, "separation")
        return Separation(self.halves, theta, real, self.problem.config.overlap.weight)

    def _next(self, start: bool) -> Cycle:
        settings = self.problem.config.overlap
        return overlap.next_phase(
            self.cycle, settings.separate_steps, settings.retrain_steps, settings.look_every, start
        )

    def _end_of_cycle(self, theta: torch.Tensor) -> None:
        """Moves the cycle on; where it has ended, keeps it only if validation accuracy did not suffer."""
        if not self.mitigates_overlap:
            return
        before = self.cycle.phase
        self.cycle = self._next(start=False)
        if before is not Phase.RETRAIN or self.cycle.phase is not Phase.MATCH:
            return
        assert self.rollback is not None
        assert self.halves is not None
        after, score = self._measure(theta, self.halves), self._score_now()
        undone = score < self.rollback["validation"]
        self.cycles.append(
            CycleRow(
                self.cycle.number,
                self.step,
                self.rollback["overlap"],
                after,
                self.rollback["validation"],
                score,
                undone,
            )
        )
        if undone:
            self.learner.load_state_dict(self.rollback["learner"])
        self.halves, self.rollback = None, None
