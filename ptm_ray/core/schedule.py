"""Segment schedules: which part of a trajectory the student imitates at an outer step.

A schedule is a frozen description; what moves is a `Progress`, which the caller keeps and checkpoints. `ByCount` and
`ByProgress` are PTM: the start stays (at snapshot 0 as in the paper, or after a head start) and the end grows.
`RandomSegments` is MTT: a fixed length at a random place. `GrowingWindow` is DATM: the same, from a range of places
that widens. `Interleaved` mixes progressive and random ones.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
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

    def begin(self) -> Progress:
        """Where the schedule stands before the first outer step."""

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        """The segment of an outer step; what is random about it comes from `generator`."""

    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress:
        """Where it stands once that segment was matched with that loss; what grows by count has `grown` so far, from 0
        to 1 and beyond.
        """

    def typical(self) -> list[tuple[float, Segment]]:
        """Segments that stand for all, each with its share of the outer steps: what a run costs is told from them."""

    def usual(self) -> Segment:
        """The one that the inner lr is said for; students of others take steps in proportion."""


def grow(kind: str, fraction: float) -> float:
    """g of the growth by count: 0 → 0, 1 → 1, never falling; held at 1 beyond."""
    x = min(1.0, max(0.0, fraction))
    if kind == "cosine":
        return (1 - math.cos(math.pi * x)) / 2
    if kind == "stepped":
        return math.floor(4 * x) / 4
    return x


@dataclass(frozen=True)
class Growing(ABC):
    """PTM: a fixed start, and an end that grows from `end_min` to `end_max`. How is for subclasses to say."""

    end_min: int
    end_max: int
    start: int = field(default=0, kw_only=True)

    def begin(self) -> Progress:
        return Progress(float(self.end_min))

    def at(self, progress: Progress) -> Segment:
        """The segment here; nothing about it is random."""
        return Segment(self.start, round(progress.end))

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        return self.at(progress)

    @abstractmethod
    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress: ...

    def typical(self) -> list[tuple[float, Segment]]:
        return [(0.5, Segment(self.start, end)) for end in (self.end_min, self.end_max)]

    def usual(self) -> Segment:
        return Segment(self.start, self.end_min)


@dataclass(frozen=True)
class ByCount(Growing):
    """An end that grows along g with the count of outer steps, then holds."""

    shape: str = "linear"

    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress:
        end = self.end_min + round((self.end_max - self.end_min) * grow(self.shape, grown))
        return Progress(float(end), loss, progress.steps + 1)


@dataclass(frozen=True)
class ByProgress(Growing):
    """An end that moves on once the student has learned the current one.

    That is: once the smoothed matching loss has fallen under `threshold`, or after `patience` outer steps at one end,
    lest a segment that can't be matched holds up the rest. A schedule that runs ahead of the student wastes every
    step after it. Own design.
    """

    threshold: float
    patience: int
    smoothing: float = 0.7

    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress:
        known = not math.isnan(progress.loss)
        smoothed = self.smoothing * progress.loss + (1 - self.smoothing) * loss if known else loss
        steps = progress.steps + 1
        if progress.end < self.end_max and (smoothed < self.threshold or steps >= self.patience):
            return Progress(progress.end + 1)
        return Progress(progress.end, smoothed, steps)


@dataclass(frozen=True)
class RandomSegments:
    """MTT: `length` snapshots from a start drawn uniformly from start_min … start_max (both inclusive)."""

    start_max: int
    length: int
    start_min: int = 0

    def begin(self) -> Progress:
        return Progress(float(self.length))

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        start = int(torch.randint(self.start_min, self.start_max + 1, (), generator=generator))
        return Segment(start, start + self.length)

    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress:
        return progress

    def typical(self) -> list[tuple[float, Segment]]:
        return [(1.0, Segment(self.start_min, self.start_min + self.length))]

    def usual(self) -> Segment:
        half_way = (self.start_min + self.start_max) // 2
        return Segment(half_way, half_way + self.length)


@dataclass(frozen=True)
class GrowingWindow:
    """DATM: `length` snapshots from a start drawn uniformly from start_min … latest (both inclusive).

    The latest start grows linearly from `start_first` to `start_max`: what experts learn first is matched first.
    Source: Guo et al. 2024.
    """

    start_first: int
    start_max: int
    length: int
    start_min: int = 0

    def begin(self) -> Progress:
        return Progress(float(self.start_first + self.length))

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        return self._window(round(progress.end) - self.length).segment(progress, generator)

    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress:
        latest = self.start_first + round((self.start_max - self.start_first) * grow("linear", grown))
        return Progress(float(latest + self.length), loss, progress.steps + 1)

    def typical(self) -> list[tuple[float, Segment]]:
        return self._window(self.start_max).typical()

    def usual(self) -> Segment:
        return self._window(self.start_max).usual()

    def _window(self, latest: int) -> RandomSegments:
        return RandomSegments(latest, self.length, self.start_min)


@dataclass(frozen=True)
class Interleaved:
    """Progressive segments, and at a `share` of outer steps, drawn at random, one of `later` instead.

    A student that always begins at the same snapshot says nothing of what experts learn late. Own design.
    """

    progressive: Growing
    later: RandomSegments
    share: float

    def begin(self) -> Progress:
        return self.progressive.begin()

    def segment(self, progress: Progress, generator: torch.Generator) -> Segment:
        late = float(torch.rand((), generator=generator)) < self.share
        return (self.later if late else self.progressive).segment(progress, generator)

    def advance(self, progress: Progress, matched: Segment, grown: float, loss: float) -> Progress:
        if matched != self.progressive.at(progress):
            return progress
        return self.progressive.advance(progress, matched, grown, loss)

    def typical(self) -> list[tuple[float, Segment]]:
        parts = ((1 - self.share, self.progressive), (self.share, self.later))
        return [(whole * share, segment) for whole, part in parts for share, segment in part.typical()]

    def usual(self) -> Segment:
        # Those that most outer steps match: who trains on the set at its inner lr takes steps as small as theirs.
        return self.later.usual()


def student_steps(segment: Segment, per_snapshot: float, steps_min: int, steps_max: int) -> int:
    """N = clamp(per_snapshot · length of the segment, steps_min, steps_max)."""
    return max(steps_min, min(steps_max, round(per_snapshot * segment.length)))
