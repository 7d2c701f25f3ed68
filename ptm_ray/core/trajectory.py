"""An expert trajectory, and at which training steps its snapshots are taken."""

import itertools
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trajectory:
    """An expert's parameters at every snapshot; snapshot 0 is its initialisation.

    `theta` is a sequence of float32 vectors of length params (kept apart, so that a matching step moves two of them
    and not all), `epochs` the fractional epoch of each.
    """

    expert: int
    theta: tuple[Vector, ...]
    epochs: tuple[float, ...]


@runtime_checkable
class TrajectorySource(Protocol):
    """Snapshots from the object store or from files."""

    @property
    def num_experts(self) -> int:
        """How many experts there are."""

    def vector(self, expert: int, snapshot: int) -> Vector:
        """The expert's parameters at that snapshot; not to be written to."""


class StraightLine:
    """Trajectories made straight: each snapshot moved onto the line from the expert's first one to its last.

    It lies as far along as the share of the way that the expert had gone by then, so that the line is walked at the
    expert's own pace. Source: Zhong et al. 2024 (Matching convexified trajectory); there the weights come from the
    linearised dynamics of the network, and points between snapshots are drawn too.
    """

    def __init__(self, source: TrajectorySource, snapshots: int) -> None:
        self._source, self._last = source, snapshots
        self._shares: dict[int, npt.NDArray[np.float64]] = {}

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self._source.num_experts

    def vector(self, expert: int, snapshot: int) -> Vector:
        """The point of the line that stands for the expert's parameters at that snapshot."""
        first, last = self._source.vector(expert, 0), self._source.vector(expert, self._last)
        if snapshot in (0, self._last):
            return last if snapshot else first
        return first + np.float32(self._share(expert, snapshot)) * (last - first)

    def _share(self, expert: int, snapshot: int) -> float:
        if expert not in self._shares:
            vectors = [self._source.vector(expert, k) for k in range(self._last + 1)]
            gone = np.cumsum([float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(vectors)])
            self._shares[expert] = gone / gone[-1]
        return float(self._shares[expert][snapshot - 1])


def snapshot_steps(steps: int, snapshots: int, power: float) -> list[int]:
    """Training steps at which snapshots are taken: 0, then `snapshots` more up to `steps`, no two alike.

    `power` 1 spaces them evenly; above 1 they are denser early, where a network moves most in a step.
    """
    wanted = [round(steps * (k / snapshots) ** power) for k in range(snapshots + 1)]
    for k in range(1, len(wanted)):
        wanted[k] = max(wanted[k], wanted[k - 1] + 1)
    return wanted
