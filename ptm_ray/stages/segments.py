"""The segments that a run matches, and what the student does in each: how many steps, how large, in which place."""

import math
from collections.abc import Callable

from ptm_ray.config import DistillConfig
from ptm_ray.core.matching import Shape
from ptm_ray.core.schedule import (
    ByCount,
    ByProgress,
    Growing,
    GrowingWindow,
    Interleaved,
    Progress,
    RandomSegments,
    Schedule,
    Segment,
    student_steps,
)
from ptm_ray.core.synthetic import ANYWHERE, Position
from ptm_ray.core.types import Tensor
from ptm_ray.stages.problem import Problem


def make_schedule(config: DistillConfig, start: int) -> Schedule:
    """The schedule that the settings describe; progressive segments begin at `start`."""
    settings = config.schedule
    start_max = config.experts.snapshots - settings.length if settings.start_max is None else settings.start_max
    if settings.kind == "random":
        return RandomSegments(start_max, settings.length, settings.start_min or 0)
    if settings.kind == "window":
        earliest = settings.start_min or 0
        first = (earliest + start_max) // 2 if settings.start_first is None else settings.start_first
        return GrowingWindow(first, start_max, settings.length, earliest)
    end_min = settings.end_min or max(start + 1, math.ceil((start + config.end_max) / 2))
    progressive: Growing
    if settings.kind == "count":
        progressive = ByCount(end_min, config.end_max, settings.shape, start=start)
    else:
        progressive = ByProgress(end_min, config.end_max, settings.threshold, settings.patience, start=start)
    share = config.later_share(start)
    if share == 0:
        return progressive
    start_min = max(1, start) if settings.start_min is None else settings.start_min
    return Interleaved(progressive, RandomSegments(start_max, settings.length, min(start_min, start_max)), share)


class Segments:
    """A run's schedule, and all that follows from it, once it is known where progressive segments begin.

    `searched` is the part of the schedule that the first inner lr is searched on: segments of one kind, so that one lr
    can be best for them.
    """

    def __init__(self, problem: Problem, start: int) -> None:
        self._config, self._expert_steps = problem.config, problem.snapshot_steps()
        self.start = start
        self.schedule = make_schedule(problem.config, start)
        self.searched = self.schedule.progressive if isinstance(self.schedule, Interleaved) else self.schedule
        self._usually_covered = self.covered(self.schedule.usual())

    def student_steps(self, segment: Segment) -> int:
        """Inner steps in a segment."""
        student = self._config.student
        return student_steps(segment, student.steps_per_snapshot, student.steps_min, self._config.student_steps_max)

    def mean_student_steps(self) -> float:
        """Inner steps of an outer step, over the segments that the schedule draws."""
        return sum(share * self.student_steps(segment) for share, segment in self.schedule.typical())

    def shape(self, segment: Segment, vector: Callable[[int], Tensor]) -> Shape | None:
        """What the student's way is compared with: the expert's `vector` at the snapshot in the middle.

        The student should be there after its part of the expert's steps. None where that does not count, and where
        either has nothing between its ends.
        """
        weight, steps = self._config.matching.shape_weight, self.student_steps(segment)
        if not weight or segment.length < 2 or steps < 2:
            return None
        middle = (segment.start + segment.end) // 2
        start, there, end = (self._expert_steps[snapshot] for snapshot in (segment.start, middle, segment.end))
        after = round(steps * (there - start) / (end - start))
        return Shape(vector(middle), min(max(after, 1), steps - 1), weight)

    def pace(self, segment: Segment) -> float:
        """What an inner step of this segment covers, over the same of the usual one: one α then serves all segments."""
        return self.covered(segment) / self._usually_covered

    def position(self, segment: Segment, progress: Progress) -> Position:
        """What α depends on. Where all segments are progressive it is one number: a slope would double `log_lr`."""
        if isinstance(self.schedule, Growing):
            return ANYWHERE
        if isinstance(self.searched, Growing) and segment == self.searched.at(progress):
            return Position(progressive=1.0)
        return Position(along=2 * segment.start / self._config.experts.snapshots - 1)

    def covered(self, segment: Segment) -> float:
        """Steps of the expert that an inner step of the segment has to cover."""
        return (self._expert_steps[segment.end] - self._expert_steps[segment.start]) / self.student_steps(segment)
