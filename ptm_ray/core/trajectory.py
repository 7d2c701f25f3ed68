"""An expert trajectory, and at which training steps its snapshots are taken."""

from dataclasses import dataclass
from typing import Protocol

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


class TrajectorySource(Protocol):
    """Snapshots from the object store or from files."""

    @property
    def num_experts(self) -> int:
        """How many experts there are."""

    def vector(self, expert: int, snapshot: int) -> Vector:
        """The expert's parameters at that snapshot; not to be written to."""


def snapshot_steps(steps: int, snapshots: int, power: float) -> list[int]:
    """Training steps at which snapshots are taken: 0, then `snapshots` more up to `steps`, no two alike.

    `power` 1 spaces them evenly; above 1 they are denser early, where a network moves most in a step.
    """
    wanted = [round(steps * (k / snapshots) ** power) for k in range(snapshots + 1)]
    for k in range(1, len(wanted)):
        wanted[k] = max(wanted[k], wanted[k - 1] + 1)
    return wanted
