"""Matching losses: how far the student's end, or its way, is from the expert's."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ptm_ray.core.types import Float, Tensor

#: The parameters that count carry at least this share of the expert's squared path: of fewer, a quotient would be made
#: of what the expert hardly moved.
LEAST_PATH = 0.01
#: Of the 27 cosines between two of a state's differences to all three, the share that are an angle's. The others are
#: 0 or 1 for student and expert alike.
ANGLES_AMONG_COSINES = 2 / 9


def matching_loss(
    student: Float[Tensor, " params"],
    start: Float[Tensor, " params"],
    target: Float[Tensor, " params"],
    counting: Tensor | None = None,
) -> Float[Tensor, ""]:
    """‖student − target‖² / ‖start − target‖²; 0 is arrival, 1 means that the student got nowhere.

    Relative to the expert's own path, so that long and short segments weigh alike. Source: MTT (Cazenavette et al.
    2022), eq. 2. `counting` is a mask, (params,): both are then sums over these alone (HoP-TM).
    """
    errors, path = (student - target).square(), (start - target).square()
    if counting is not None:
        errors, path = counting * errors, counting * path
    return errors.sum() / path.sum()


class Easy:
    """Easy to complex: parameters count from the moment that the student has once come close to the expert's.

    `counting`: those that count so far, a mask, (params,); None before the first. `below`: a squared error is small
    if it is less than this times the expert's mean squared path.

    Source: HoP-TM (MICCAI 2025). Own design: a threshold relative to the path, where the published one is absolute and
    so holds for one network and one length of segments; and, where what counts carries less than `LEAST_PATH` of the
    path (nothing at all would be 0/0), the smallest errors that carry as much count too.
    """

    def __init__(self, counting: Tensor | None, below: float) -> None:
        self.counting, self._below = counting, below

    def grow(
        self, student: Float[Tensor, " params"], start: Float[Tensor, " params"], target: Float[Tensor, " params"]
    ) -> Tensor:
        """Those that count once the student has ended there: all from before, and more."""
        errors, path = (student.detach() - target).square(), (start - target).square()
        counting = errors < self._below * path.mean()
        if self.counting is not None:
            counting |= self.counting
        least = LEAST_PATH * path.sum()
        if (counting * path).sum() < least:
            easiest = errors.argsort()
            needed = int((path[easiest].cumsum(0) < least).sum()) + 1
            counting[easiest[:needed]] = True
        self.counting = counting
        return counting


class Shape(NamedTuple):
    """What the shape of the student's way is compared with: the expert's state between its ends, (params,), and the
    inner steps, at least one and not all, after which the student should be there. `weight` is HoP-TM's λ."""

    middle: Tensor
    after: int
    weight: float


def angle_cosines(
    start: Float[Tensor, " params"], middle: Float[Tensor, " params"], end: Float[Tensor, " params"]
) -> Float[Tensor, "3"]:
    """Cosines of the triangle's angles at start, middle and end."""
    there, on, whole = middle - start, end - middle, end - start
    pairs = ((there, whole), (-there, on), (on, whole))
    return torch.stack([F.cosine_similarity(one, other, dim=0) for one, other in pairs])


def shape_potential(student: Float[Tensor, "3"], expert: Float[Tensor, "3"]) -> Float[Tensor, ""]:
    """Smooth L1 between the cosines of two ways' angles, 0 where their triangles are similar.

    The mean over all 27 cosines between normalised differences of two states each. Source: HoP-TM (MICCAI 2025), after
    the angle potential of Park et al. 2019 (Relational knowledge distillation), eq. 8.
    """
    return ANGLES_AMONG_COSINES * F.smooth_l1_loss(student, expert)


@dataclass(frozen=True)
class Matching:
    """The loss of a segment: MTT's, unless some parameters are to count first or the way has a shape to follow."""

    easy: Easy | None = None
    shape: Shape | None = None

    @property
    def plain(self) -> bool:
        """Whether it is MTT's."""
        return self.easy is None and self.shape is None

    @property
    def after(self) -> int | None:
        """Inner steps after which the student's state is looked at beside its end."""
        return None if self.shape is None else self.shape.after

    def loss(
        self,
        start: Float[Tensor, " params"],
        target: Float[Tensor, " params"],
        end: Float[Tensor, " params"],
        middle: Float[Tensor, " params"] | None = None,
    ) -> Float[Tensor, ""]:
        """Of a student that ends there and, where `after` asks for it, is at `middle` on its way."""
        counting = None if self.easy is None else self.easy.grow(end, start, target)
        loss = matching_loss(end, start, target, counting)
        if self.shape is None:
            return loss
        assert middle is not None
        expert = angle_cosines(start, self.shape.middle, target)
        return loss + self.shape.weight * shape_potential(angle_cosines(start, middle, end), expert)
