"""Segment schedules: which part of a trajectory the student imitates at an outer step.

A schedule is a frozen description; what moves is a `Progress`, which the caller keeps and checkpoints. `ByCount` and
`ByProgress` are PTM: the start stays at snapshot 0 and the end grows. `RandomSegments` is MTT: a fixed length at a
random place.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


class Segment(NamedTuple):
    """Start and end snapshot, both inclusive."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Snapshots from start to end."""
        return self.end - self.start


class Progress(NamedTuple):
    """Where a growing schedule stands: its end, the smoothed matching loss there, outer steps spent there."""

    end: float
    loss: float = math.nan
    steps: int = 0


class Schedule(Protocol):
    """Outer step → segment, and how the schedule moves on."""

    def begin(self) -> Progress: ...

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment: ...

    def advance(self, progress: Progress, outer_step: int, loss: float) -> Progress: ...


def grow(kind: str, fraction: float) -> float:
    """g of the growth by count: 0 → 0, 1 → 1, never falling; held at 1 beyond."""
    x = min(1.0, max(0.0, fraction))
    if kind == "cosine":
        return (1 - math.cos(math.pi * x)) / 2
    if kind == "stepped":
        return math.floor(4 * x) / 4
    return x


@dataclass(frozen=True)
class ByCount:
    """PTM with an end that grows from `end_min` to `end_max` over `growth` outer steps, along g, then holds."""

    end_min: int
    end_max: int
    growth: int
    shape: str = "linear"

    def begin(self) -> Progress:
        return Progress(float(self.end_min))

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        return Segment(0, round(progress.end))

    def advance(self, progress: Progress, outer_step: int, loss: float) -> Progress:
        share = grow(self.shape, (outer_step + 1) / self.growth)
        end = self.end_min + round((self.end_max - self.end_min) * share)
        return Progress(float(end), loss, progress.steps + 1)


@dataclass(frozen=True)
class ByProgress:
    """PTM with an end that moves on once the student has learned the current one.

    That is: once the smoothed matching loss has fallen under `threshold`, or after `patience` outer steps at one end,
    lest a segment that can't be matched holds up the rest. A schedule that runs ahead of the student wastes every
    step after it. Own design.
    """

    end_min: int
    end_max: int
    threshold: float
    patience: int
    smoothing: float = 0.7

    def begin(self) -> Progress:
        return Progress(float(self.end_min))

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        return Segment(0, round(progress.end))

    def advance(self, progress: Progress, outer_step: int, loss: float) -> Progress:
        known = not math.isnan(progress.loss)
        smoothed = self.smoothing * progress.loss + (1 - self.smoothing) * loss if known else loss
        steps = progress.steps + 1
        if progress.end < self.end_max and (smoothed < self.threshold or steps >= self.patience):
            return Progress(progress.end + 1)
        return Progress(progress.end, smoothed, steps)


@dataclass(frozen=True)
class RandomSegments:
    """MTT: `length` snapshots from a start drawn uniformly from 0 … start_max (inclusive)."""

    start_max: int
    length: int

    def begin(self) -> Progress:
        return Progress(float(self.length))

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        start = int(torch.randint(self.start_max + 1, (), generator=generator))
        return Segment(start, start + self.length)

    def advance(self, progress: Progress, outer_step: int, loss: float) -> Progress:
        return progress


def student_steps(segment: Segment, per_snapshot: float, steps_min: int, steps_max: int) -> int:
    """N = clamp(per_snapshot · length of the segment, steps_min, steps_max)."""
    return max(steps_min, min(steps_max, round(per_snapshot * segment.length)))
