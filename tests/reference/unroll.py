"""The slow, obvious gradient: build the whole graph of the student's training and differentiate it."""

from unittest.mock import patch

import torch

from ptm_ray.core import augment
from ptm_ray.core.nets import convnet
from tests.reference.blocks import slow_block


@patch.object(convnet, "norm_relu_pool", slow_block)
def fully_unrolled(network, start, target, images, labels, log_lr, batches, *, exact=True, loss=None):
    """Without `exact`, where a step's gradient is taken counts as a constant: TESLA's approximation.

    `loss` is a function of all states of the student, MTT's by default.
    """
    images, labels, log_lr = (t.detach().clone().requires_grad_() for t in (images, labels, log_lr))
    theta = start.detach().clone().requires_grad_()
    states = [theta]
    for rows, draw in batches:
        where = theta if exact else theta.detach().requires_grad_()
        logits = network.logits(where, augment.apply(draw, images[rows]))
        error = -(labels[rows] * torch.log_softmax(logits, 1)).sum() / len(rows)
        (gradient,) = torch.autograd.grad(error, where, create_graph=True)
        theta = theta - log_lr.exp() * gradient
        states.append(theta)
    found = ((theta - target) ** 2).sum() / ((start - target) ** 2).sum() if loss is None else loss(states)
    return found, *torch.autograd.grad(found, (images, labels, log_lr))
