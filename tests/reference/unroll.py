"""The slow, obvious gradient: build the whole graph of the student's training and differentiate it."""

import torch

from ptm_ray.core import augment


def fully_unrolled(network, start, target, images, labels, log_lr, batches, *, exact=True):
    """Without `exact`, where a step's gradient is taken counts as a constant: TESLA's approximation."""
    images, labels, log_lr = (t.detach().clone().requires_grad_() for t in (images, labels, log_lr))
    theta = start.detach().clone().requires_grad_()
    for rows, draw in batches:
        where = theta if exact else theta.detach().requires_grad_()
        logits = network.logits(where, augment.apply(draw, images[rows]))
        loss = -(labels[rows] * torch.log_softmax(logits, 1)).sum() / len(rows)
        (gradient,) = torch.autograd.grad(loss, where, create_graph=True)
        theta = theta - log_lr.exp() * gradient
    loss = ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()
    return loss, *torch.autograd.grad(loss, (images, labels, log_lr))
