"""A matching step on a GPU: recorded once for each number of student steps, then replayed.

All N steps and the way back through them are one recording. Which images a batch has and how they are augmented differs
from one outer step to the next and stays outside: that is done for all batches together before, and its derivative
taken once afterwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ptm_ray.core import augment
from ptm_ray.core.batch import Batch, seen_at_once
from ptm_ray.core.matching import Matching
from ptm_ray.core.params import Network
from ptm_ray.core.recording import Recording, memory_pool
from ptm_ray.core.types import Float, Tensor
from ptm_ray.core.unroll import RECOMPUTE, Gradients, Plan, matching_gradients


class _Call(NamedTuple):
    """Calls alike in this are one recording."""

    sizes: tuple[int, ...]
    plan: Plan
    exact: bool


class _Step:
    """One recorded call, and the tensors that it reads."""

    def __init__(self, network: Network, given: Sequence[Tensor], call: _Call, pool: object) -> None:
        device = given[0].device
        self._given = [tensor.clone() for tensor in given]
        rows = torch.split(torch.arange(sum(call.sizes), device=device), list(call.sizes))
        batches = [Batch(own, augment.Draw("", torch.empty(0))) for own in rows]

        def run() -> Gradients:
            start, target, images, labels, log_lr = self._given
            given = start, target, images, labels, log_lr, batches
            return matching_gradients(network, *given, plan=call.plan, exact=call.exact)

        self._recording = Recording(run, device, pool)

    def __call__(self, given: Sequence[Tensor]) -> Gradients:
        for mine, tensor in zip(self._given, given, strict=True):
            mine.copy_(tensor)
        return self._recording()


def finder(network: Network, device: torch.device) -> "Replays | None":
    """What is faster there than `matching_gradients` itself, if anything is."""
    return Replays(network) if device.type == "cuda" else None


class Replays:
    """`matching_gradients` of one network, by recordings, which share their memory."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._steps: dict[_Call, _Step] = {}
        self._pool: object = None

    def __call__(
        self,
        start: Float[Tensor, " params"],
        target: Float[Tensor, " params"],
        images: Float[Tensor, "n channels height width"],
        labels: Float[Tensor, "n classes"],
        log_lr: Float[Tensor, ""],
        batches: Sequence[Batch],
        *,
        plan: Plan = RECOMPUTE,
        exact: bool = True,
        matching: Matching | None = None,
    ) -> Gradients:
        """As `unroll.matching_gradients`.

        What looks at the student on its way, or at which parameters count, depends on values: it is not recorded.
        """
        if matching is not None and not matching.plain:
            given = start, target, images, labels, log_lr, batches
            return matching_gradients(self._network, *given, plan=plan, exact=exact, matching=matching)
        rows = torch.cat([batch.rows for batch in batches]).to(images.device)
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            seen = seen_at_once(batches, leaf)
        tensors = start, target, seen.detach(), labels[rows], log_lr
        call = _Call(tuple(len(batch.rows) for batch in batches), plan, exact)
        if call not in self._steps:
            self._pool = self._pool or memory_pool(images.device)
            self._steps[call] = _Step(self._network, tensors, call, self._pool)
        found = self._steps[call](tensors)
        (of_images,) = torch.autograd.grad(seen, leaf, found.images)
        of_labels = torch.zeros_like(labels).index_add_(0, rows, found.labels)
        return Gradients(found.loss.clone(), of_images, of_labels, found.log_lr.clone())
