"""One outer step: match a segment, update the synthetic set.

Everything that a run carries from one outer step to the next is a `Learner`; its `state_dict` is all that a
checkpoint needs of the mathematics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ptm_ray.core.batch import Batch
from ptm_ray.core.matching import matching_loss
from ptm_ray.core.optimiser import Optimiser, rows_alike
from ptm_ray.core.overlap import Halves, Reference, separation_gradient
from ptm_ray.core.params import Network
from ptm_ray.core.synthetic import ANYWHERE, Position, Synthetic
from ptm_ray.core.types import Float, Tensor
from ptm_ray.core.unroll import Gradients, Student, mean_gradients, roll_out

#: Inner lr is multiplied by this when an update is skipped: a student that explodes took too long steps.
BACK_OFF = 0.5

#: Matching losses this near to the best count as equally good when the first inner lr is searched.
SEARCH_TOLERANCE = 0.1


@dataclass(frozen=True)
class OuterRates:
    """Step sizes of the update. `optimiser` is "adam" or "sgd" (MTT's, with momentum 0.5).

    `by_segment`: the inner lr is learned as a function of the segment rather than as one number. An update whose loss
    is above `explode_at` is skipped and makes the inner lr back off; above `skip_above` it is skipped, no more.
    """

    optimiser: str
    images: float
    inner_lr: float
    labels: float
    ema_decay: float
    explode_at: float
    by_segment: bool = False
    skip_above: float = math.inf


class Separation:
    """What the separate phase needs beside the segment: the halves, and real images in the embedding at its end."""

    def __init__(
        self, halves: Halves, theta: Float[Tensor, " params"], real: dict[int, Reference], weight: float
    ) -> None:
        self.halves, self.theta, self.real, self.weight = halves, theta, real, weight


@dataclass(frozen=True)
class StepMetrics:
    """What one outer step reports. `skipped`: the update was left out, as it was not finite or its loss had exploded
    (`diverged`), or as its loss was above `skip_above`.
    """

    loss: float
    inner_lr: float
    skipped: bool
    overlap: float | None = None
    diverged: bool = False


class Learner:
    """The synthetic set, its optimiser and its moving average.

    `bounds` are the normalised values of black and white, (2, channels, 1, 1): no image leaves them, so that what is
    learned is a picture that a file of eight bits can hold. None where that has no meaning (after ZCA).

    With `by_segment` α is learned by the segment's `Position`. Experts move less in a step the longer they have
    trained, and long segments want other steps than short ones: with one α for all, some students overshoot (a
    matching loss above 1 at the end of the trajectory) while others fall short. On held-out images of four training
    sets, one image per class, two seeds each, sets were better by 0 to 2.5 points, 0.8 on average. Own design; without
    it there is one α, as in MTT.
    """

    def __init__(
        self, synthetic: Synthetic, rates: OuterRates, bounds: Float[Tensor, "2 channels 1 1"] | None = None
    ) -> None:
        self.synthetic, self.rates, self._bounds = synthetic, rates, bounds
        learned = [(synthetic.images, rates.images), (synthetic.log_lr, rates.inner_lr)]
        if rates.by_segment:
            learned += [(tilt, rates.inner_lr) for tilt in synthetic.tilts]
        if synthetic.label_logits is not None:
            learned.append((synthetic.label_logits, rates.labels))
        self.optimiser = Optimiser(rates.optimiser, learned)
        self.ema = synthetic.images.clone() if rates.ema_decay else None
        #: Parameters that have been easy so far, a mask, (params,); None where all count.
        self.easy: Tensor | None = None
        #: How often each image was moved, (n,).
        self.updates = torch.zeros(len(synthetic.images), dtype=torch.int64)

    def result(self) -> Synthetic:
        """A copy of the set as it would be handed on: averaged images where averaging is on."""
        images = self.synthetic.images if self.ema is None else self.ema
        return replace(self.synthetic, images=images).map(torch.clone)

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that changes."""
        now = self.synthetic
        tensors = {
            "images": now.images,
            "log_lr": now.log_lr,
            "tilts": torch.stack(now.tilts),
            "label_logits": now.label_logits,
            "ema": self.ema,
            "easy": self.easy,
            "updates": self.updates,
        }
        copied = {key: None if value is None else value.clone() for key, value in tensors.items()}
        return {**copied, "moments": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a copied state, in place."""
        now = self.synthetic
        # One number for all images in checkpoints of earlier versions.
        self.updates.copy_(torch.as_tensor(state["updates"]))
        now.images.copy_(state["images"])
        now.log_lr.copy_(state["log_lr"])
        for tilt, value in zip(now.tilts, state["tilts"], strict=True):
            tilt.copy_(value)
        if now.label_logits is not None:
            now.label_logits.copy_(state["label_logits"])
        if self.ema is not None:
            self.ema.copy_(state["ema"])
        self.easy = None if state["easy"] is None else state["easy"].clone()
        self.optimiser.load_state_dict(state["moments"])

    def update(self, gradients: Gradients, position: Position, moving: Tensor | None = None) -> None:
        """One step of the optimiser, by gradients of a segment at `position`.

        With `moving`, the images and labels of all other rows stay as they are, and so do their momentum and average.
        """
        now = self.synthetic
        downhill: list[Tensor | None] = [gradients.images, gradients.log_lr]
        if self.rates.by_segment:
            # None where the segment says nothing of it: momentum alone must not move it.
            downhill += [gradients.log_lr * part if part else None for part in position]
        if now.label_logits is not None:
            leaf = now.label_logits.detach().requires_grad_()
            with torch.enable_grad():
                probabilities = leaf.softmax(1)
            downhill += torch.autograd.grad(probabilities, leaf, gradients.labels)
        self.optimiser.step(downhill, moving)
        rows = slice(None) if moving is None else moving
        if self._bounds is not None:
            now.images[rows] = now.images[rows].clamp(*self._bounds)
        counted = slice(None) if moving is None else moving.cpu()
        self.updates[counted] += 1
        if self.ema is not None:
            self._average(self.ema, rows, self.updates[counted])

    def _average(self, ema: Tensor, rows: Tensor | slice, updates: Tensor) -> None:
        """Moves the averages of these images on, each by how often it was moved itself."""
        # Over the last tenth or so of what is still short: the start must not linger.
        decays = (updates.double() / (updates + 9)).clamp(max=self.rates.ema_decay)
        theirs, images = ema[rows], self.synthetic.images[rows]
        for decay, alike in rows_alike(decays):
            theirs[alike] = theirs[alike].lerp(images[alike], 1 - decay)
        ema[rows] = theirs


def search_inner_lr(
    network: Network,
    synthetic: Synthetic,
    segments: Sequence[tuple[Float[Tensor, " params"], Float[Tensor, " params"]]],
    batches: Sequence[Batch],
    guess: float,
) -> float:
    """The largest inner lr among guess · 2, 1, ½ … 1/16 whose student comes about as close to the targets as any.

    Images that have learned nothing yet often take a far smaller step than the experts' own rate times their steps
    (on one set of blood cells the guess gave a matching loss of 10): the first hundred updates would go into that
    alone. But where they don't help at all, the closest student is one that stands still, and images that move
    nothing learn nothing: hence the largest of the good ones. Where every student diverges, the smallest of all.
    Rolling forward costs a fraction of an update.
    """
    labels = synthetic.labels()
    candidates = [guess * 2.0**-k for k in range(-1, 5)]

    def mean_loss(lr: float) -> float:
        losses = [
            float(matching_loss(roll_out(network, start, synthetic.images, labels, lr, batches), start, target))
            for start, target in segments
        ]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    losses = [mean_loss(lr) for lr in candidates]
    if min(losses) == math.inf:
        return candidates[-1]
    good_enough = min(losses) + SEARCH_TOLERANCE
    return next(lr for lr, loss in zip(candidates, losses, strict=True) if loss <= good_enough)


def _usable(gradients: Gradients, explode_at: float) -> bool:
    finite = all(bool(torch.isfinite(part).all()) for part in gradients)
    return finite and float(gradients.loss) < explode_at


def outer_step(
    network: Network,
    learner: Learner,
    students: Sequence[Student],
    *,
    pace: float = 1.0,
    position: Position = ANYWHERE,
    separation: Separation | None = None,
    moving: Tensor | None = None,
    mean: Callable[[Gradients], Gradients] | None = None,
    find: Callable[..., Gradients] | None = None,
) -> StepMetrics:
    """Matches students to what they should become and updates the synthetic set in place, by their mean gradient.

    Their steps are of inner lr α · `pace`, so that one α serves segments that differ in what a step covers; α
    itself is that of the segment's `position`.

    `separation` also climbs the overlap ratio (the separate phase), by its gradient scaled to `weight` times the norm
    of the matching gradient; `moving` limits the update to those rows (separate and retrain). `mean` is what several
    processes that match a segment each make of their gradients. `find` is how this network's `mean_gradients` are
    found, by default exactly and within the least memory. An update that is not finite, or whose loss has exploded, is
    skipped and the inner lr backs off; what has become easy (see `Easy`) for the first student is remembered otherwise.
    """
    now = learner.synthetic
    log_lr = learner.synthetic.log_lr_at(position) + math.log(pace)
    find = find or partial(mean_gradients, network)
    gradients = find(students, now.images, now.labels(), log_lr)
    if mean is not None:
        gradients = mean(gradients)
    loss, inner_lr = float(gradients.loss), math.exp(float(learner.synthetic.log_lr_at(position)))
    if not _usable(gradients, learner.rates.explode_at):
        now.log_lr.add_(math.log(BACK_OFF))
        return StepMetrics(loss, inner_lr, skipped=True, diverged=True)
    if loss > learner.rates.skip_above:
        return StepMetrics(loss, inner_lr, skipped=True)
    overlap = None
    if separation is not None:
        ratio, apart = separation_gradient(
            network, separation.theta, now.images, now.classes, separation.halves, separation.real
        )
        # Of a size to hold its own beside the matching gradient, whatever the units of either on these images.
        floor = torch.finfo(apart.dtype).tiny
        size = gradients.images[moving].norm() / apart[moving].norm().clamp_min(floor)
        gradients = gradients._replace(images=gradients.images - separation.weight * size * apart)
        overlap = float(ratio)
    learner.update(gradients, position, moving)
    easy = students[0].matching.easy
    if easy is not None:
        learner.easy = easy.counting
    return StepMetrics(loss, inner_lr, skipped=False, overlap=overlap)
