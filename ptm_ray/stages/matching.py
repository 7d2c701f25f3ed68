"""What a run needs of a way to match: the loop of `stages.distill` knows no more of trajectories, features or gradients
than is here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ptm_ray.core.distill import Learner
from ptm_ray.core.params import Network
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.types import Float, Tensor
from ptm_ray.stages.mitigation import CycleRow
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.team import Team


@dataclass(frozen=True)
class Row:
    """What happened in one outer step; the run's history is made of these.

    `start` and `end` are snapshots; both are 0 where no trajectory is matched. `skipped`: nothing was moved, either as
    the update was of no use (`diverged`) or as its loss was above what the method lets pass.
    """

    outer_step: int
    start: int
    end: int
    student_steps: int
    loss: float
    inner_lr: float
    skipped: bool
    phase: str
    overlap: float | None
    elapsed_s: float = 0.0
    diverged: bool = False


@dataclass(frozen=True)
class Workplace:
    """What every way to match works with: the problem, the matching network, the set that is learned, the team."""

    problem: Problem
    network: Network
    seeds: Seeds
    learner: Learner
    ops: tuple[str, ...]
    team: Team

    def fresh_parameters(self, outer_step: int) -> Float[Tensor, " params"]:
        """Newly drawn parameters, from the outer step's own stream."""
        return self.network.init(self.seeds.stream("matching network", outer_step)).to(self.problem.device)


class Matcher(Protocol):
    """A way to match: one update of the learner's set at each outer step, and whatever it must remember between them.

    Either `begin` or `load_state_dict` comes first. Each outer step is a `prepare` and an `update`; between the two the
    loop may have the set scored, unless it is `unfinished`.
    """

    @property
    def passes(self) -> float:
        """Images that go through the network in an outer step, forward or back, on average: how scoring is paced."""
        ...

    @property
    def unfinished(self) -> bool:
        """Whether the set is in the middle of something and should be neither scored nor handed on."""
        ...

    @property
    def cycles(self) -> Sequence[CycleRow]:
        """What overlap mitigation has done so far."""
        ...

    def begin(self, hits: Callable[[], Tensor]) -> None:
        """Before the first outer step. `hits` waits for how often networks trained on the initial set know each image
        of the validation split.
        """
        ...

    def prepare(self, outer_step: int, spent: float) -> None:
        """Draws what the outer step needs; `spent` is the share of the run that is over, from 0 to 1."""
        ...

    def update(self, outer_step: int) -> Row:
        """Matches and updates the learner's set."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        ...


class NoMatching:
    """The `Matcher` of a run without outer steps, whose first images are handed on as they are."""

    #: Of no outer step; scoring, which is paced by it, is not asked for on the way.
    passes = 1.0
    unfinished = False
    cycles: tuple[CycleRow, ...] = ()

    def begin(self, hits: object) -> None:
        """There is nothing to find out."""

    def prepare(self, outer_step: int, spent: float) -> None:
        """Never asked."""
        raise NotImplementedError("a run without outer steps matches nothing")

    def update(self, outer_step: int) -> Row:
        """Never asked."""
        raise NotImplementedError("a run without outer steps matches nothing")

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""
