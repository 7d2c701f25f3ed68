"""Adam and SGD, by the formulas of `torch.optim` and to the same bits.

Why not those: the first optimiser that a process makes imports torch's compiler, a second of every worker's start.
"""

import math
from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch

from ptm_ray.core.types import Tensor

#: Adam's decay of the two moments, and what keeps its division finite.
BETAS = (0.9, 0.99)
EPS = 1e-8


class Optimiser:
    """Moves tensors in place, each at its own rate: downhill, or uphill where that is negative.

    Those without a gradient in a step stay where they are, momentum or no.

    `kind` is "adam" or "sgd", the latter with `momentum`.
    """

    def __init__(self, kind: str, params: Sequence[tuple[Tensor, float]], momentum: float = 0.5) -> None:
        self._update = {"adam": self._adam, "sgd": self._sgd}[kind]
        self._names = {"adam": ("mean", "square"), "sgd": ("velocity",)}[kind]
        self._params, self._momentum = list(params), momentum
        #: Of each parameter that was ever moved, by its number: tensors, and how often each of its rows was.
        self._moments: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], moving: Tensor | None = None) -> None:
        """One update, by one gradient for each parameter.

        With `moving`, of those rows alone where a parameter has rows: the others keep their place and their momentum.
        """
        for number, ((param, lr), gradient) in enumerate(zip(self._params, gradients, strict=True)):
            if gradient is None:
                continue
            if number not in self._moments:
                moments = {name: torch.zeros_like(param) for name in self._names}
                self._moments[number] = {"steps": torch.zeros(param.shape[:1], dtype=torch.int64), **moments}
            held = self._moments[number]
            if moving is None or not param.dim():
                held["steps"] += 1
                self._update(param, lr, gradient, held)
                continue
            rows, theirs = param[moving], {name: held[name][moving] for name in self._names}
            theirs["steps"] = held["steps"][moving.cpu()] + 1
            self._update(rows, lr, gradient[moving], theirs)
            param[moving] = rows
            held["steps"][moving.cpu()] = theirs.pop("steps")
            for name, moment in theirs.items():
                held[name][moving] = moment

    def _adam(self, param: Tensor, lr: float, gradient: Tensor, held: dict[str, Tensor]) -> None:
        """Moments begin at 0, for which they are corrected by how often a row was moved, whenever it first was."""
        first, second = BETAS
        held["mean"].lerp_(gradient, 1 - first)
        held["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        for steps, rows in rows_alike(held["steps"]):
            scale = (held["square"][rows].sqrt() / math.sqrt(1 - second**steps)).add_(EPS)
            param[rows] = param[rows].addcdiv(held["mean"][rows], scale, value=-lr / (1 - first**steps))

    def _sgd(self, param: Tensor, lr: float, gradient: Tensor, held: dict[str, Tensor]) -> None:
        held["velocity"].mul_(self._momentum).add_(gradient)
        param.add_(held["velocity"], alpha=-lr)

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """Copies of all that changes beside the parameters."""
        return _copied(self._moments)

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Back to a copied state, wherever that was read to: counts are asked for at every step, and stay here."""
        self._moments = {n: {**held, "steps": held["steps"].cpu()} for n, held in _copied(state).items()}


def rows_alike(values: Tensor) -> Iterator[tuple[float, Tensor | EllipsisType]]:
    """Each number that rows have, and those that have it: nearly always one, and all."""
    found = torch.unique(values).tolist()
    for value in found:
        yield value, ... if len(found) == 1 else (values == value).nonzero().flatten()


def _copied(moments: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    return {number: {name: value.clone() for name, value in held.items()} for number, held in moments.items()}
