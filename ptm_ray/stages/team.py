"""Several processes that distil one set together: each matches a trajectory of its own, all hold the same set.

Whatever is drawn, measured or decided for the whole set is the first one's word, which the others are told. So the
replicas stay one run, whose checkpoint is the first one's.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ptm_ray.core.synthetic import Synthetic
from ptm_ray.core.types import Tensor
from ptm_ray.core.unroll import Gradients
from ptm_ray.stages.scoring import Scorer

T = TypeVar("T")


class Team(Protocol):
    """The others, as one of them sees them; each call is made by all."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def matchers(self) -> Sequence[int]:
        """Those of the run's matchers that this one is."""
        ...

    def mean(self, gradients: Gradients) -> Gradients:
        """Of everybody's gradients."""
        ...

    def broadcast(self, value: T) -> T:
        """What the first one passes here."""
        ...


class Alone:
    """A team of one, which does for all matchers."""

    rank = 0
    size = 1

    def __init__(self, matchers: int = 1) -> None:
        self.matchers = range(matchers)

    def mean(self, gradients: Gradients) -> Gradients:
        """Its own."""
        return gradients

    def broadcast(self, value: T) -> T:
        """The value itself."""
        return value


class TeamScorer:
    """The first one's scorer, whose answers all hear."""

    def __init__(self, scorer: Scorer, team: Team) -> None:
        self._scorer, self._team = scorer, team

    def submit(self, tag: int, candidate: Synthetic) -> None:
        """Handed over once: all hold the same."""
        if self._team.rank == 0:
            self._scorer.submit(tag, candidate)

    def collect(self, wait: bool) -> list[tuple[int, Tensor]]:
        """What the first one has got."""
        return self._team.broadcast(self._scorer.collect(wait) if self._team.rank == 0 else [])
