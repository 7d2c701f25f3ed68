"""The trajectory buffer: every snapshot its own object in Ray's store, and the files as the truth after any loss."""

from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from ptm_ray.core.trajectory import Vector
from ptm_ray.store.trajectories import TrajectoryStore


@dataclass(frozen=True)
class TrajectoryBuffer:
    """References to snapshots, by expert and number; cheap to hand to any worker.

    A matching step moves the two vectors it needs and not a trajectory. An object that was lost with its node is read
    from the expert's file instead.
    """

    store: TrajectoryStore
    snapshots: tuple[tuple[Any, ...], ...]

    @property
    def num_experts(self) -> int:
        return len(self.snapshots)

    def first(self, count: int) -> "TrajectoryBuffer":
        """Of so many experts alone: their number is no part of what names them, so those who want fewer share these."""
        return replace(self, snapshots=self.snapshots[:count])

    def vector(self, expert: int, snapshot: int) -> Vector:
        """A read-only view, (params,) float32."""
        try:
            vector: Vector = ray.get(self.snapshots[expert][snapshot])
        except ObjectLostError:
            return self.store.read(expert).theta[snapshot]
        return vector
