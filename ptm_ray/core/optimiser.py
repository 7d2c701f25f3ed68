"""Adam and SGD, by the formulas of `torch.optim` and to the same bits.

Why not those: the first optimiser that a process makes imports torch's compiler, a second of every worker's start.
"""

import math
from collections.abc import Sequence
from typing import Any

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
        #: Of each parameter that was ever moved, by its number: tensors, and how often.
        self._moments: dict[int, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], moving: Tensor | None = None) -> None:
        """One update, by one gradient for each parameter.

        With `moving`, of those rows alone where a parameter has rows: the others keep their place and their momentum.
        """
        for number, ((param, lr), gradient) in enumerate(zip(self._params, gradients, strict=True)):
            if gradient is None:
                continue
            if number not in self._moments:
                self._moments[number] = {"step": 0, **{name: torch.zeros_like(param) for name in self._names}}
            held = self._moments[number]
            held["step"] += 1
            if moving is None or not param.dim():
                self._update(param, lr, gradient, held)
                continue
            rows = param[moving]
            theirs = {**held, **{name: held[name][moving] for name in self._names}}
            self._update(rows, lr, gradient[moving], theirs)
            param[moving] = rows
            for name in self._names:
                held[name][moving] = theirs[name]

    def _adam(self, param: Tensor, lr: float, gradient: Tensor, held: dict[str, Any]) -> None:
        first, second = BETAS
        held["mean"].lerp_(gradient, 1 - first)
        held["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = (held["square"].sqrt() / math.sqrt(1 - second ** held["step"])).add_(EPS)
        param.addcdiv_(held["mean"], scale, value=-lr / (1 - first ** held["step"]))

    def _sgd(self, param: Tensor, lr: float, gradient: Tensor, held: dict[str, Any]) -> None:
        held["velocity"].mul_(self._momentum).add_(gradient)
        param.add_(held["velocity"], alpha=-lr)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Copies of all that changes beside the parameters."""
        return _copied(self._moments)

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Back to a copied state."""
        self._moments = _copied(state)


def _copied(moments: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {
        number: {name: value.clone() if isinstance(value, Tensor) else value for name, value in held.items()}
        for number, held in moments.items()
    }
