"""A matching step on a GPU: recorded once for each number of student steps, then replayed.

All N steps and the way back through them are one recording, of several students side by side. Which images a batch has
and how they are augmented differs from one outer step to the next and stays outside: that is done for all batches
together before, and its derivative taken once afterwards.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from ptm_ray.core.batch import Batch
from ptm_ray.core.params import Network
from ptm_ray.core.recording import Recording, memory_pool, side_by_side
from ptm_ray.core.types import Float, Tensor
from ptm_ray.core.unroll import RECOMPUTE, Gradients, Plan, Seen, Student, matching_gradients, mean_gradients


class _Call(NamedTuple):
    """Calls alike in this are one recording. `sizes`: of each student's batches."""

    sizes: tuple[tuple[int, ...], ...]
    plan: Plan
    exact: bool


class _Step:
    """One recorded call, and the tensors that it reads of each student; `batches` are each one's steps."""

    def __init__(
        self,
        network: Network,
        given: Sequence[Sequence[Tensor]],
        batches: Sequence[Sequence[Batch]],
        call: _Call,
        pool: object,
    ) -> None:
        device = given[0][0].device
        self._given = [[tensor.clone() for tensor in own] for own in given]

        def match(number: int, found: list[Gradients]) -> None:
            start, target, images, labels, log_lr = self._given[number]
            mine = start, target, images, labels, log_lr, batches[number]
            found.append(matching_gradients(network, *mine, plan=call.plan, exact=call.exact))

        def run() -> list[Gradients]:
            found: list[Gradients] = []
            side_by_side([partial(match, number, found) for number in range(len(batches))], device)
            return found

        self._recording = Recording(run, device, pool)

    def __call__(self, given: Sequence[Sequence[Tensor]]) -> list[Gradients]:
        for mine, theirs in zip(self._given, given, strict=True):
            for held, tensor in zip(mine, theirs, strict=True):
                held.copy_(tensor)
        return self._recording()


def finder(network: Network, device: torch.device) -> Callable[..., Gradients]:
    """The network's `mean_gradients`, in the way that is fastest there."""
    return Replays(network) if device.type == "cuda" else partial(mean_gradients, network)


class Replays:
    """`mean_gradients` of one network, by recordings, which share their memory."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._steps: dict[_Call, _Step] = {}
        self._pool: object = None

    def __call__(
        self,
        students: Sequence[Student],
        images: Float[Tensor, "n channels height width"],
        labels: Float[Tensor, "n classes"],
        log_lr: Float[Tensor, ""],
        *,
        plan: Plan = RECOMPUTE,
        exact: bool = True,
    ) -> Gradients:
        """As `unroll.mean_gradients`.

        What looks at the student on its way, or at which parameters count, depends on values: it is not recorded.
        """
        if not all(student.matching.plain for student in students):
            return mean_gradients(self._network, students, images, labels, log_lr, plan=plan, exact=exact)
        seen = Seen(students, images, labels)
        given = [(s.start, s.target, *own, log_lr) for s, *own in zip(students, seen.images, seen.labels, strict=True)]
        call = _Call(tuple(map(tuple, seen.sizes)), plan, exact)
        if call not in self._steps:
            self._pool = self._pool or memory_pool(images.device)
            batches = [seen.batches(number) for number in range(len(students))]
            self._steps[call] = _Step(self._network, given, batches, call, self._pool)
        return seen.mean(self._steps[call](given))
