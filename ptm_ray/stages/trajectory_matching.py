"""Matching trajectories: segments of experts, students of the set, and overlap mitigation on the way."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ptm_ray.core.batch import Batch
from ptm_ray.core.distill import outer_step, search_inner_lr
from ptm_ray.core.matching import Easy, Matching
from ptm_ray.core.overlap import Phase
from ptm_ray.core.replay import finder
from ptm_ray.core.schedule import Progress, Schedule, Segment
from ptm_ray.core.synthetic import inner_batches
from ptm_ray.core.trajectory import StraightLine, TrajectorySource
from ptm_ray.core.unroll import Plan, Student, plan_for
from ptm_ray.stages import mitigation
from ptm_ray.stages.head_start import head_start
from ptm_ray.stages.matching import Row, Workplace
from ptm_ray.stages.memory import matching_budget
from ptm_ray.stages.mitigation import CycleRow, Mitigation
from ptm_ray.stages.segments import Segments
from ptm_ray.stages.selection import validate_every

#: Segments that the first inner lr is searched on.
SEARCH_SEGMENTS = 2
#: Passes through the network that an inner step costs, forward and back with second derivatives, where an ordinary
#: training step costs 3: counted as convolutions.
PASSES_OF_INNER_STEP = 9


class TrajectoryMatching:
    """PTM, MTT and all that differ from them in segments, experts or gradients.

    `validate` scores the set as it is now on the validation split (see `Mitigation`). Students see `rows` of the set,
    of which those that are `moving` are learned; by default all of both.
    """

    def __init__(
        self,
        at: Workplace,
        trajectories: TrajectorySource,
        validate: Callable[[float], float],
        *,
        rows: torch.Tensor | None = None,
        moving: torch.Tensor | None = None,
    ) -> None:
        self._at, self._config = at, at.problem.config
        if self._config.schedule.path == "straight":
            trajectories = StraightLine(trajectories, self._config.experts.snapshots)
        self.trajectories, self._validate = trajectories, validate
        images = at.learner.synthetic.images
        self._rows = torch.arange(len(images), device=images.device) if rows is None else rows
        self._moving = moving
        self._plans: dict[tuple[int, int], Plan] = {}
        # For each of the students that are matched at a time.
        self._budget = matching_budget(self._config.student.memory_mib, images.device) // len(at.team.matchers)
        self._find = finder(at.network, images.device)

    def begin(self, hits: Callable[[], torch.Tensor]) -> None:
        """Finds where progressive segments begin and, where it is not given, the first inner lr."""
        broadcast = self._at.team.broadcast
        self._plan_segments(broadcast(self._head_start(hits)))
        self.progress = self.segments.schedule.begin()
        if self._config.student.inner_lr is None:
            self._at.learner.synthetic.log_lr.copy_(broadcast(self._searched_log_lr()))

    def state_dict(self) -> dict[str, Any]:
        """Where segments and mitigation stand."""
        return {
            "start": self.segments.start,
            "progress": list(self.progress),
            "mitigation": None if self.mitigation is None else self.mitigation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        self._plan_segments(state["start"])
        self.progress = Progress(*state["progress"])
        # A population's trial that begins to mitigate may go on from one that did not.
        if self.mitigation is not None and state["mitigation"] is not None:
            self.mitigation.load_state_dict(state["mitigation"])

    @property
    def passes(self) -> float:
        """Of the students: images of a batch, at each of their steps."""
        return self.passes_of(len(self._rows))

    def passes_of(self, images: int) -> float:
        """The same of students that see so many."""
        return PASSES_OF_INNER_STEP * self.segments.mean_student_steps() * min(images, self._config.student.batch_size)

    @property
    def phase(self) -> Phase:
        """Of the mitigation's cycle."""
        return Phase.MATCH if self.mitigation is None else self.mitigation.phase

    @property
    def unfinished(self) -> bool:
        """In mid-cycle a set is half done, and the look that begins one has scored this very set."""
        return self.phase is not Phase.MATCH

    @property
    def cycles(self) -> list[CycleRow]:
        """What overlap mitigation has done so far."""
        return [] if self.mitigation is None else self.mitigation.cycles

    def prepare(self, outer_step: int, spent: float) -> None:
        """Draws segment, expert and batches; looks at the overlap where a look is due."""
        self._spent = spent
        self._segment, expert = self._draw("segment", outer_step, self.segments.schedule)
        # One segment for all matchers, lest some wait for others' longer ones; an expert for each.
        self._drawn = [
            ((expert + matcher) % self.trajectories.num_experts, self._draw_batches(self._segment, outer_step, matcher))
            for matcher in self._at.team.matchers
        ]
        self._looked = None
        if self.mitigation is not None:
            target = self._vector(expert, self._segment.end)
            self._looked = self.mitigation.look(self._at.learner, target, outer_step, self.progress)

    def update(self, step: int) -> Row:
        """One outer step on the segment that was drawn."""
        segment, learner, phase = self._segment, self._at.learner, self.phase
        students = [self._student(step, *drawn) for drawn in self._drawn]
        metrics = outer_step(
            self._at.network,
            learner,
            students,
            pace=self.segments.pace(segment),
            position=self.segments.position(segment, self.progress),
            separation=None if self.mitigation is None else self.mitigation.separation(),
            moving=self._moving if self.mitigation is None else self.mitigation.moving,
            mean=self._at.team.mean,
            find=partial(self._find, plan=self._plan(students[0]), exact=self._config.student.gradient == "exact"),
        )
        if learner.easy is not None:
            learner.easy = self._at.team.broadcast(learner.easy)
        if not metrics.skipped:
            grown = self._config.schedule.grown(step + 1, self._spent)
            self.progress = self.segments.schedule.advance(self.progress, segment, grown, metrics.loss)
        if self.mitigation is not None:
            self.progress = self.mitigation.advance(learner, step + 1, metrics.overlap, self.progress)
        return Row(
            outer_step=step,
            start=segment.start,
            end=segment.end,
            student_steps=len(students[0].batches),
            loss=metrics.loss,
            inner_lr=metrics.inner_lr,
            skipped=metrics.skipped,
            diverged=metrics.diverged,
            phase=str(phase),
            overlap=metrics.overlap if self._looked is None else self._looked,
        )

    def _student(self, step: int, expert: int, batches: list[Batch]) -> Student:
        """Of that expert, on the segment that was drawn."""
        start, target = (self._vector(expert, snapshot) for snapshot in self._segment)
        below = self._config.matching.easy_below(step, self._spent)
        easy = None if below is None else Easy(self._at.learner.easy, below)
        shape = self.segments.shape(self._segment, partial(self._vector, expert))
        return Student(start, target, batches, Matching(easy, shape))

    def _draw(self, stage: str, index: int, schedule: Schedule) -> tuple[Segment, int]:
        """What the schedule asks for now, and an expert."""
        draw = self._at.seeds.stream(stage, index)
        segment = schedule.segment(self.progress, draw)
        return segment, int(torch.randint(self.trajectories.num_experts, (), generator=draw))

    def _draw_batches(self, segment: Segment, outer_step: int, matcher: int) -> list[Batch]:
        draw = self._at.seeds.stream("inner batches", outer_step, *((matcher,) if matcher else ()))
        size, steps = self._config.student.batch_size, self.segments.student_steps(segment)
        batches = inner_batches(len(self._rows), size, steps, self._at.ops, draw)
        return [Batch(self._rows[batch.rows], batch.draw) for batch in batches]

    def _vector(self, expert: int, snapshot: int) -> torch.Tensor:
        return self._at.problem.parameters(self.trajectories.vector(expert, snapshot))

    def _plan_segments(self, start: int) -> None:
        """Segments, and the mitigation that is paced by them."""
        at = self._at
        self.segments = Segments(at.problem, start)
        self.mitigation: Mitigation | None = None
        if mitigation.applies(at.problem):
            pace = validate_every(self._config, len(at.learner.synthetic.images), self.passes)
            self.mitigation = Mitigation(at.problem, at.network, at.seeds, at.team, self._validate, pace)

    def _head_start(self, hits: Callable[[], torch.Tensor]) -> int:
        """Where progressive segments begin: as asked, or as far as experts surely know less than the set."""
        config = self._config
        settings = config.schedule
        if not settings.progressive or settings.start is not None or config.images.init == "noise":
            return settings.start or 0
        latest = config.end_max - settings.length if settings.end_min is None else settings.end_min - 1
        return head_start(
            self._at.network,
            self._vector,
            self.trajectories.num_experts,
            max(0, latest),
            *self._at.problem.tensors("val"),
            hits(),
            self._at.seeds.stream("head start"),
        )

    def _searched_log_lr(self) -> torch.Tensor:
        experts = self._at.problem.experts
        drawn = [self._draw("inner lr", index, self.segments.searched) for index in range(SEARCH_SEGMENTS)]
        pairs = [(self._vector(expert, segment.start), self._vector(expert, segment.end)) for segment, expert in drawn]
        first, _ = drawn[0]
        batches = self._draw_batches(first, 0, self._at.team.rank)
        # With momentum m an expert moves as if its rate were 1 / (1 − m) as large.
        guess = experts.lr / (1 - experts.momentum) * self.segments.covered(first)
        found = search_inner_lr(self._at.network, self._at.learner.synthetic, pairs, batches, guess)
        return torch.tensor(found / self.segments.pace(first)).log()

    def _plan(self, student: Student) -> Plan:
        start, _, batches, _ = student
        key = (len(batches), len(batches[0].rows))
        if key not in self._plans:
            now = self._at.learner.synthetic
            self._plans[key] = plan_for(self._budget, self._at.network, start, now.images, now.labels(), batches)
        return self._plans[key]
