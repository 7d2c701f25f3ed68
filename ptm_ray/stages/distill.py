"""The loop of a distillation in one process: match, look at the overlap, validate, checkpoint, stop in time.

Every random draw comes from a seed stream named by the outer step, so a checkpoint needs no generator state, and a
run that was stopped and resumed gives the same images, bit for bit, as one that never was.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ptm_ray.config import DistillConfig
from ptm_ray.core.distill import Learner, OuterRates, outer_step, search_inner_lr
from ptm_ray.core.overlap import Phase
from ptm_ray.core.schedule import Progress, Schedule, Segment
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Synthetic, inner_batches
from ptm_ray.core.trajectory import StraightLine, TrajectorySource
from ptm_ray.core.unroll import Batch, Plan, plan_for
from ptm_ray.errors import DivergedError
from ptm_ray.stages import mitigation
from ptm_ray.stages.head_start import head_start
from ptm_ray.stages.initial_set import initial_set
from ptm_ray.stages.mitigation import CycleRow, Mitigation
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Scorer
from ptm_ray.stages.segments import Segments
from ptm_ray.stages.selection import Selection, validate_every
from ptm_ray.stages.team import Alone, Team, TeamScorer
from ptm_ray.store.checkpoints import RunFolder

#: Segments that the first inner lr is searched on.
SEARCH_SEGMENTS = 2
#: Seconds between two checkpoints.
CHECKPOINT_EVERY_S = 20.0


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


def outer_rates(config: DistillConfig) -> OuterRates:
    """The step sizes that the settings ask for."""
    images = config.images
    return OuterRates(
        optimiser=images.optimiser,
        images=config.images_lr,
        inner_lr=images.inner_lr_lr,
        labels=images.label_lr,
        ema_decay=images.ema,
        explode_at=images.explode_at,
        by_segment=config.student.inner_lr_by_segment,
        skip_above=math.inf if images.skip_above is None else images.skip_above,
    )


class Distillation:
    """A distillation under way. `run` is the loop; everything it needs to go on is in `state_dict`.

    With a `team`, one of several in as many processes, each with a folder, that go on from the first one's checkpoint.
    """

    def __init__(
        self,
        problem: Problem,
        trajectories: TrajectorySource,
        scorer: Scorer,
        folder: RunFolder,
        team: Team | None = None,
    ) -> None:
        started, config = time.monotonic(), problem.config
        if config.schedule.path == "straight":
            trajectories = StraightLine(trajectories, config.experts.snapshots)
        self.problem, self.trajectories, self.folder, self.team = problem, trajectories, folder, team or Alone()
        self.network = problem.network()
        self.seeds = Seeds(config.seed)
        bounds = problem.whitening.bounds if config.images.in_range else None
        self.learner = Learner(initial_set(problem, trajectories, self.seeds), outer_rates(config), bounds)
        self.ops = problem.ops if config.images.augment else ()
        self.checkpoint_every_s = CHECKPOINT_EVERY_S
        self.step = 0
        self.elapsed_s = 0.0
        self.selection = Selection(TeamScorer(scorer, self.team), problem.tensors("val")[1])
        self.rows: list[Row] = []
        self.skipped_in_a_row = 0
        self._plans: dict[tuple[int, int], Plan] = {}
        saved = self.team.told(folder.load_checkpoint() if self.team.rank == 0 else None)
        if saved is not None:
            self._plan_segments(saved["start"])
            self.load_state_dict(saved)
            return
        # The initial set is a candidate too: a run never hands on anything that validation knows to be worse.
        self.selection.submit(0, self.learner.result())
        self._agree()
        self._plan_segments(self.team.told(self._head_start()))
        self.progress = self.segments.schedule.begin()
        if config.student.inner_lr is None:
            self.learner.synthetic.log_lr.copy_(self.team.told(self._searched_log_lr()))
        self.elapsed_s = time.monotonic() - started

    @property
    def cycles(self) -> list[CycleRow]:
        """What overlap mitigation has done so far."""
        return [] if self.mitigation is None else self.mitigation.cycles

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on, as tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "start": self.segments.start,
            "progress": list(self.progress),
            "selection": self.selection.state_dict(),
            "mitigation": None if self.mitigation is None else self.mitigation.state_dict(),
            "rows": [asdict(row) for row in self.rows],
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to where a checkpoint was made."""
        self.learner.load_state_dict(state["learner"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.progress = Progress(*state["progress"])
        self.selection.load_state_dict(state["selection"])
        if self.mitigation is not None:
            self.mitigation.load_state_dict(state["mitigation"])
        self.rows = [Row(**row) for row in state["rows"]]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def run(self, budget_s: float | None = None, stop_after: int | None = None) -> Iterator[Row]:
        """Yields a row after every outer step, until the settings' outer steps or the budget are spent.

        `budget_s` counts the run's own wall time, over resumptions. `stop_after` ends this call after so many outer
        steps. A checkpoint is written every few seconds and at the end.
        """
        saved = time.monotonic()
        until = self.problem.config.outer_steps if stop_after is None else self.step + stop_after
        while self.step < min(until, self.problem.config.outer_steps):
            started = time.monotonic()
            spent = budget_s is not None and self.elapsed_s >= budget_s
            spent, due = self.team.told((spent, started - saved > self.checkpoint_every_s))
            if spent:
                break
            if due:
                self.checkpoint()
                saved = started
            row = self._one_step()
            self.elapsed_s += time.monotonic() - started
            self.rows.append(row)
            yield row
        self.checkpoint()
        whole = self.mitigation is None or self.mitigation.phase is Phase.MATCH
        if stop_after is None and whole and self.step > self.selection.latest:
            # After the checkpoint: a run that is resumed with more time must not remember where it once ended.
            self._validate_now()

    def result(self) -> Synthetic:
        """The set that `Selection` keeps."""
        kept, now = self.selection.kept, self.learner.synthetic
        if kept is None:
            return self.learner.result()
        return Synthetic(classes=now.classes.clone(), num_classes=now.num_classes, **kept.learned)

    def _one_step(self) -> Row:
        step = self.step
        segment, expert = self._draw("segment", step, self.segments.schedule)
        batches = self._batches(segment)
        looked = None
        if self.mitigation is not None:
            looked = self.mitigation.look(self.learner, self._vector(expert, segment.end), step)
        # One segment for the whole team, lest some wait for others' longer ones; an expert for each.
        expert = (expert + self.team.rank) % self.trajectories.num_experts
        start, end = (self._vector(expert, snapshot) for snapshot in segment)
        phase = Phase.MATCH if self.mitigation is None else self.mitigation.phase
        if phase is Phase.MATCH and step - self.selection.latest >= self.validate_every:
            # In mid-cycle a set is half done; the look that begins one has scored this very set.
            self.selection.submit(step, self.learner.result())
        self.selection.collect(wait=False)
        metrics = outer_step(
            self.network,
            self.learner,
            start,
            end,
            batches,
            pace=self.segments.pace(segment),
            position=self.segments.position(segment, self.progress),
            plan=self._plan(start, batches),
            separation=None if self.mitigation is None else self.mitigation.separation(),
            moving=None if self.mitigation is None else self.mitigation.moving,
            mean=self.team.mean,
            exact=self.problem.config.student.gradient == "exact",
            easy_below=self.problem.config.matching.easy_below(step),
            shape=self.segments.shape(segment, partial(self._vector, expert)),
        )
        if self.learner.easy is not None:
            self.learner.easy = self.team.told(self.learner.easy)
        self._count_skipped(metrics.skipped, metrics.loss)
        if not metrics.skipped:
            self.progress = self.segments.schedule.advance(self.progress, segment, step, metrics.loss)
        self.step += 1
        if self.mitigation is not None:
            self.mitigation.advance(self.learner, self.step, metrics.overlap)
        overlap = metrics.overlap if looked is None else looked
        return Row(
            outer_step=step,
            start=segment.start,
            end=segment.end,
            student_steps=len(batches),
            loss=metrics.loss,
            inner_lr=metrics.inner_lr,
            skipped=metrics.skipped,
            phase=str(phase),
            overlap=overlap,
            elapsed_s=self.elapsed_s,
        )

    def _draw(self, stage: str, index: int, schedule: Schedule) -> tuple[Segment, int]:
        """What the schedule asks for now, and an expert."""
        draw = self.seeds.stream(stage, index)
        segment = schedule.segment(self.progress, draw)
        return segment, int(torch.randint(self.trajectories.num_experts, (), generator=draw))

    def _vector(self, expert: int, snapshot: int) -> torch.Tensor:
        return torch.from_numpy(self.trajectories.vector(expert, snapshot).copy())

    def _plan_segments(self, start: int) -> None:
        """Segments, and what is done every so many of them."""
        self.segments = Segments(self.problem, start, self.seeds.stream("first segment"))
        inner_steps = self.segments.mean_student_steps()
        self.validate_every = validate_every(self.problem.config, len(self.learner.synthetic.images), inner_steps)
        self.mitigation: Mitigation | None = None
        if mitigation.applies(self.problem):
            of_run = (self.problem, self.network, self.seeds)
            self.mitigation = Mitigation(*of_run, self._validate_now, self.validate_every)

    def _head_start(self) -> int:
        """Where progressive segments begin: as asked, or as far as experts surely know less than the set."""
        config = self.problem.config
        settings = config.schedule
        if not settings.progressive or settings.start is not None or config.images.init == "noise":
            return settings.start or 0
        self.selection.collect(wait=True)
        assert self.selection.kept is not None
        latest = config.end_max - settings.length if settings.end_min is None else settings.end_min - 1
        return head_start(
            self.network,
            self.trajectories.vector,
            self.trajectories.num_experts,
            max(0, latest),
            *self.problem.tensors("val"),
            self.selection.kept.hits,
            self.seeds.stream("head start"),
        )

    def _searched_log_lr(self) -> torch.Tensor:
        experts = self.problem.experts
        # With momentum m an expert moves as if its rate were 1 / (1 − m) as large.
        guess = experts.lr / (1 - experts.momentum) * self.segments.first_covered()
        drawn = [self._draw("inner lr", index, self.segments.searched) for index in range(SEARCH_SEGMENTS)]
        pairs = [(self._vector(expert, segment.start), self._vector(expert, segment.end)) for segment, expert in drawn]
        batches = self._batches(drawn[0][0])
        return torch.tensor(search_inner_lr(self.network, self.learner.synthetic, pairs, batches, guess)).log()

    def _batches(self, segment: Segment) -> list[Batch]:
        of_rank = (self.team.rank,) if self.team.rank else ()
        draw, size = self.seeds.stream("inner batches", self.step, *of_rank), self.problem.config.student.batch_size
        steps = self.segments.student_steps(segment)
        return inner_batches(len(self.learner.synthetic.images), size, steps, self.ops, draw)

    def _plan(self, start: torch.Tensor, batches: list[Batch]) -> Plan:
        key = (len(batches), len(batches[0].rows))
        if key not in self._plans:
            budget = self.problem.config.student.memory_mib * 2**20
            now = self.learner.synthetic
            self._plans[key] = plan_for(budget, self.network, start, now.images, now.labels(), batches)
        return self._plans[key]

    def _count_skipped(self, skipped: bool, loss: float) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        most = self.problem.config.images.max_skipped
        if self.skipped_in_a_row > most:
            alpha = math.exp(float(self.learner.synthetic.log_lr))
            raise DivergedError(
                f"{most} updates in a row were skipped (matching loss {loss:.3g}, inner lr down to {alpha:.3g}): "
                "the student diverges on these experts; lower experts.lr or student.inner_lr, or take more snapshots"
            )

    def _validate_now(self) -> float:
        """The validation score of the set as it is, waited for."""
        return self.selection.score_now(self.step, self.learner.result())

    def checkpoint(self) -> None:
        """Writes all that the run needs to go on, once every candidate is scored."""
        self.selection.collect(wait=True)
        self._agree()
        self.folder.save_checkpoint(self.state_dict())

    def _agree(self) -> None:
        """All go on from the first one's set: machines of several kinds may round differently, and drift apart."""
        if self.team.size > 1:
            self.learner.load_state_dict(self.team.told(self.learner.state_dict()))
