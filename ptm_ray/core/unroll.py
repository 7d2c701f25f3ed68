"""The exact gradient of the matching loss through all of the student's steps, at a memory of the user's choosing.

The student starts at θ_0 and takes N plain SGD steps θ_{k+1} = θ_k − α ∇ℓ(θ_k, x_k, y_k). Rolling forward keeps the
N + 1 parameter vectors. Sweeping back, v = ∂L/∂θ_{k+1} becomes, with g_k = ∇ℓ(θ_k, x_k, y_k) and s = ⟨g_k, v⟩,

    ∂L/∂x_k = −α ∂s/∂x_k      ∂L/∂y_k = −α ∂s/∂y_k      ∂L/∂α −= s      v ← v − α ∂s/∂θ_k

so each step needs one gradient of one inner product, of a graph that spans a single step. That graph is either kept
from the roll forward (less work) or made again (memory flat in N); `keep` says for how many of the last steps it is
kept, and the result is the same. Source: the adjoint of SGD, own design; TESLA drops terms of it and is an
approximation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from ptm_ray.core import augment
from ptm_ray.core.matching import matching_loss
from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Tensor


class Batch(NamedTuple):
    """What one inner step trains on: rows of the synthetic set, and the augmentation drawn for them."""

    rows: Tensor
    draw: augment.Draw


class Gradients(NamedTuple):
    """Of the matching loss. `labels` is in the space of label probabilities; `log_lr` in that of log α."""

    loss: Float[Tensor, ""]
    images: Float[Tensor, "n channels height width"]
    labels: Float[Tensor, "n classes"]
    log_lr: Float[Tensor, ""]


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy against label probabilities."""
    return -(labels * F.log_softmax(logits, dim=1)).sum(1).mean()


@dataclass
class _Step:
    """One inner step's leaves, and its gradient as a function of them."""

    theta: Tensor
    images: Tensor
    labels: Tensor
    gradient: Tensor


def _inner_step(network: Network, theta: Tensor, images: Tensor, labels: Tensor, batch: Batch) -> _Step:
    leaves = [t.detach().requires_grad_() for t in (theta, images[batch.rows], labels[batch.rows])]
    with torch.enable_grad():
        seen = augment.apply(batch.draw, leaves[1])
        loss = soft_cross_entropy(network.logits(leaves[0], seen), leaves[2])
        (gradient,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    return _Step(leaves[0], leaves[1], leaves[2], gradient)


def _plain_gradient(
    network: Network, theta: Tensor, images: Tensor, labels: Tensor, batch: Batch
) -> Float[Tensor, " params"]:
    theta = theta.detach().requires_grad_()
    with torch.enable_grad():
        seen = augment.apply(batch.draw, images[batch.rows])
        loss = soft_cross_entropy(network.logits(theta, seen), labels[batch.rows])
        (gradient,) = torch.autograd.grad(loss, theta)
    return gradient


def matching_gradients(
    network: Network,
    start: Float[Tensor, " params"],
    target: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    log_lr: Float[Tensor, ""],
    batches: Sequence[Batch],
    *,
    keep: int = 0,
) -> Gradients:
    """Matching loss of a student that trains on `batches`, and its exact gradients.

    `labels` are probabilities. `keep` is the number of last steps whose graph is stored rather than made again: 0 is
    the recompute strategy (memory flat in the number of steps), len(batches) the full graph.
    """
    images, labels, lr = images.detach(), labels.detach(), log_lr.detach().exp()
    thetas, kept = [start.detach()], {}
    for k, batch in enumerate(batches):
        if k >= len(batches) - keep:
            step = _inner_step(network, thetas[k], images, labels, batch)
            kept[k] = step
            gradient = step.gradient.detach()
        else:
            gradient = _plain_gradient(network, thetas[k], images, labels, batch)
        thetas.append(thetas[k] - lr * gradient)

    end = thetas[-1].requires_grad_()
    loss = matching_loss(end, start, target)
    (v,) = torch.autograd.grad(loss, end)
    grad_images, grad_labels = torch.zeros_like(images), torch.zeros_like(labels)
    grad_lr = torch.zeros_like(lr)
    for k in reversed(range(len(batches))):
        rows = batches[k].rows
        kept_step = kept.pop(k, None)
        step = kept_step or _inner_step(network, thetas[k], images, labels, batches[k])
        s = step.gradient @ v
        along = torch.autograd.grad(s, (step.theta, step.images, step.labels))
        grad_lr -= s.detach()
        grad_images.index_add_(0, rows, along[1], alpha=-1.0)
        grad_labels.index_add_(0, rows, along[2], alpha=-1.0)
        v = v - lr * along[0]
        thetas.pop()
    return Gradients(loss.detach(), grad_images * lr, grad_labels * lr, grad_lr * lr)


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
        _inner_step(network, start, images.detach(), labels.detach(), batch)
    return sum(seen.values())


def steps_that_fit(
    budget_bytes: int,
    network: Network,
    start: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Float[Tensor, "n classes"],
    batches: Sequence[Batch],
) -> int:
    """How many of the steps' graphs a memory budget holds, beside the parameter vectors that every way needs."""
    largest = max(batches, key=lambda batch: len(batch.rows))
    vectors = (len(batches) + 1) * start.numel() * start.element_size()
    # One more step's graph is always alive during the backward sweep, with about as much again in flight.
    per_step = graph_bytes(network, start, images, labels, largest)
    spare = budget_bytes - vectors - 2 * per_step
    return int(min(len(batches), max(0, spare // max(1, per_step))))
