"""The exact gradient of the matching loss through all of the student's steps, at a memory of the user's choosing.

The student starts at θ_0 and takes N plain SGD steps θ_{k+1} = θ_k − α ∇ℓ(θ_k, x_k, y_k). Rolling forward keeps the
N + 1 parameter vectors. Sweeping back, v = ∂L/∂θ_{k+1} becomes, with g_k = ∇ℓ(θ_k, x_k, y_k) and s = ⟨g_k, v⟩,

    ∂L/∂x_k = −α ∂s/∂x_k      ∂L/∂y_k = −α ∂s/∂y_k      ∂L/∂α −= s      v ← v − α ∂s/∂θ_k

so each step needs one gradient of one inner product, of a graph that spans a single step. Where the loss looks at some
θ_k on the way too, v there gains its gradient. That graph is either kept from the roll forward (less work) or made
again (memory flat in N), and so are the parameter vectors; a `Plan` says which, and the result is the same. Source: the
adjoint of SGD, own design. TESLA (Cui et al. 2023) leaves out the last of the four, as if the images of a step moved no
later one: an approximation, kept for comparison.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from ptm_ray.core import augment
from ptm_ray.core.batch import Batch, seen_at_once
from ptm_ray.core.gradient import Along, loss_gradient
from ptm_ray.core.matching import Matching
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Tensor


class Plan(NamedTuple):
    """How the way back is prepared: graphs of the last `keep` steps are stored, of the steps before them every
    `spacing`-th parameter vector."""

    keep: int
    spacing: int


#: The least memory at one roll forward: nothing but the parameter vectors.
RECOMPUTE = Plan(0, 1)
#: Parameter vectors together may take this share of a graph's memory before some of them are left out.
SMALL_BESIDE_GRAPH = 0.05
#: What a process holds beyond its graphs' tensors, measured as resident memory (width 128, 20 and 90 images): up to a
#: quarter as much again, since pieces that a step frees lie between graphs and don't always fit the next; some six
#: graphs' worth while a step is at work; and what libraries take, those of compiled loops above all.
GAPS, AT_WORK, LIBRARY_BYTES = 1.25, 6, 160 * 2**20
#: Numbers in the images that all steps see, up to which a CPU augments them at once. More would take memory that grows
#: with the steps, and time in which starting an operation is nothing.
SEEN_AT_ONCE = 2**20


class Gradients(NamedTuple):
    """Of the matching loss. `labels` is in the space of label probabilities; `log_lr` in that of log α."""

    loss: Float[Tensor, ""]
    images: Float[Tensor, "n channels height width"]
    labels: Float[Tensor, "n classes"]
    log_lr: Float[Tensor, ""]


class Student(NamedTuple):
    """Where it starts, where it should end, what its steps train on, and the loss that says how far off it is."""

    start: Float[Tensor, " params"]
    target: Float[Tensor, " params"]
    batches: Sequence[Batch]
    matching: Matching = Matching()


class _Step:
    """One inner step: its gradient, and the way from there back to images and labels."""

    def __init__(
        self, network: Network, theta: Tensor, images: Tensor, labels: Tensor, batch: Batch, keep: bool = True
    ) -> None:
        self._images = images[batch.rows].requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            self._seen = augment.apply(batch.draw, self._images)
        self._of_loss = loss_gradient(network, theta, self._seen.detach(), labels[batch.rows], keep)
        self.gradient = self._of_loss.gradient.detach()
        self.kept_bytes = self._of_loss.kept_bytes

    def along(self, direction: Tensor, in_theta: bool = True) -> Along:
        """Derivatives of ⟨gradient, direction⟩ in θ, and in the rows of images and labels that were drawn."""
        found = self._of_loss.along(direction, in_theta)
        if self._seen is self._images:
            return found
        (images,) = torch.autograd.grad(self._seen, self._images, found.images)
        return found._replace(images=images)


def _plain_gradient(
    network: Network, theta: Tensor, images: Tensor, labels: Tensor, batch: Batch
) -> Float[Tensor, " params"]:
    return _Step(network, theta, images, labels, batch, keep=False).gradient


def roll_out(
    network: Network,
    start: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    lr: float,
    batches: Sequence[Batch],
) -> Float[Tensor, " params"]:
    """Where the student ends, without any gradient of the set."""
    theta = start.detach()
    for batch in batches:
        theta = theta - lr * _plain_gradient(network, theta, images, labels, batch)
    return theta


def matching_gradients(
    network: Network,
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
    """Matching loss of a student that trains on `batches`, and its exact gradients; or those of TESLA.

    `labels` are probabilities. `plan` trades memory for work; the result is the same. The loss is MTT's, or that of
    `matching`, which may look at the student on its way too.
    """
    images, labels, lr = images.detach(), labels.detach(), log_lr.detach().exp()
    theta, last = start.detach(), len(batches)
    matching = matching or Matching()
    middle: Tensor | None = None
    kept: dict[int, _Step] = {}
    stored: dict[int, Tensor] = {}
    for k, batch in enumerate(batches):
        if k >= last - plan.keep:
            kept[k] = _Step(network, theta, images, labels, batch)
            gradient = kept[k].gradient
        else:
            if k % plan.spacing == 0:
                stored[k] = theta
            gradient = _plain_gradient(network, theta, images, labels, batch)
        theta = theta - lr * gradient
        if k + 1 == matching.after:
            middle = theta.detach().requires_grad_()

    end = theta.requires_grad_()
    loss = matching.loss(start, target, end, middle)
    v, *on_the_way = torch.autograd.grad(loss, [end] if middle is None else [end, middle])
    grad_images, grad_labels = torch.zeros_like(images), torch.zeros_like(labels)
    grad_lr = torch.zeros_like(lr)
    for k in reversed(range(last)):
        rows = batches[k].rows
        if k + 1 == matching.after:
            v = v + on_the_way[0]
        if k not in kept:
            for j in range(k - k % plan.spacing, k):
                if j + 1 not in stored:
                    stored[j + 1] = stored[j] - lr * _plain_gradient(network, stored[j], images, labels, batches[j])
        step = kept.pop(k, None) or _Step(network, stored.pop(k), images, labels, batches[k])
        grad_lr -= step.gradient @ v
        along = step.along(v, in_theta=exact)
        grad_images.index_add_(0, rows, along.images, alpha=-1.0)
        grad_labels.index_add_(0, rows, along.labels, alpha=-1.0)
        if along.theta is not None:
            v = v - lr * along.theta
    return Gradients(loss.detach(), grad_images * lr, grad_labels * lr, grad_lr * lr)


class Seen:
    """What all steps of some students see, augmented at once, as sets of images that are left alone; and the way back.

    Starting the operations of an augmentation takes longer than augmenting a few small images.
    """

    def __init__(
        self,
        students: Sequence[Student],
        images: Float[Tensor, "n channels height width"],
        labels: Float[Tensor, "n classes"],
    ) -> None:
        batches = [batch for student in students for batch in student.batches]
        #: Of each student, the images of each of its steps.
        self.sizes = [[len(batch.rows) for batch in student.batches] for student in students]
        self._rows, self._labels = torch.cat([batch.rows for batch in batches]).to(images.device), labels
        self._leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            self._seen = seen_at_once(batches, self._leaf)
        of_students = [sum(own) for own in self.sizes]
        #: Of each student, what its steps see, one after the other, and the labels of that.
        self.images = torch.split(self._seen.detach(), of_students)
        self.labels = torch.split(labels[self._rows], of_students)

    def batches(self, student: int) -> list[Batch]:
        """The steps of one student, as rows of its `images`."""
        rows = torch.split(torch.arange(sum(self.sizes[student]), device=self._rows.device), self.sizes[student])
        return [Batch(own, augment.Draw("", torch.empty(0))) for own in rows]

    def mean(self, found: Sequence[Gradients]) -> Gradients:
        """The mean over students, in the images and labels of the set; `found` are in those of each student."""
        share = 1 / len(found)
        of_seen = share * torch.cat([own.images for own in found])
        (images,) = torch.autograd.grad(self._seen, self._leaf, of_seen)
        of_rows = torch.cat([own.labels for own in found])
        labels = torch.zeros_like(self._labels).index_add_(0, self._rows, of_rows, alpha=share)
        loss, log_lr = (torch.stack(parts).mean(0) for parts in zip(*((g.loss, g.log_lr) for g in found), strict=True))
        return Gradients(loss, images, labels, log_lr)


def mean_gradients(
    network: Network,
    students: Sequence[Student],
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    log_lr: Float[Tensor, ""],
    *,
    plan: Plan = RECOMPUTE,
    exact: bool = True,
) -> Gradients:
    """The mean of the students' `matching_gradients`."""

    def find(student: Student, images: Tensor, labels: Tensor, batches: Sequence[Batch]) -> Gradients:
        start, target, _, matching = student
        given = start, target, images, labels, log_lr, batches
        return matching_gradients(network, *given, plan=plan, exact=exact, matching=matching)

    def of(student: Student) -> Gradients:
        if sum(len(batch.rows) for batch in student.batches) * images[0].numel() > SEEN_AT_ONCE:
            return find(student, images, labels, student.batches)
        # Each student's own, so that several processes with one each come to the same bits.
        seen = Seen([student], images, labels)
        return seen.mean([find(student, seen.images[0], seen.labels[0], seen.batches(0))])

    found = [of(student) for student in students]
    return Gradients(*(torch.stack(parts).mean(0) for parts in zip(*found, strict=True)))


def graph_bytes(
    network: Network,
    start: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    batch: Batch,
) -> int:
    """Bytes that one inner step's graph holds on to, counted by running it once."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step = _Step(network, start, images.detach(), labels.detach(), batch)
    return step.kept_bytes + sum(seen.values())


def plan_for(
    budget_bytes: int,
    network: Network,
    start: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    batches: Sequence[Batch],
) -> Plan:
    """The fastest plan within a memory budget, which is for all that the matching step takes.

    All graphs where they fit, else those of as many last steps as do. Of the steps before them, all parameter vectors
    where these are small beside a single graph, else about the square root of their number: then memory hardly grows
    with the number of steps, and the vectors between are computed once more.
    """
    largest = max(batches, key=lambda batch: len(batch.rows))
    per_step = max(1, graph_bytes(network, start, images, labels, largest))
    vector = start.numel() * start.element_size()
    free = budget_bytes - LIBRARY_BYTES - AT_WORK * per_step - len(batches) * vector
    # A kept step has its parameters and its gradient too.
    keep = int(min(len(batches), max(0, free // (GAPS * (per_step + 2 * vector)))))
    rest = len(batches) - keep
    small = rest * vector <= SMALL_BESIDE_GRAPH * per_step
    return Plan(keep, 1 if small else max(1, round(math.sqrt(rest))))
