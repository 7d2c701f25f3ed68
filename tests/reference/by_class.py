"""DC, DSA, DM and NCFM in the slowest, most obvious way: one image, one unit, one feature, one frequency at a time."""

import cmath
import math

import torch

from ptm_ray.core.augment import Draw, apply


def seen(draw, images):
    """Each image alone through the same op at the same strength."""
    return torch.cat([apply(Draw(draw.op, draw.strength[:1]), image[None]) for image in images])


def class_gradient(network, theta, images, label):
    """Mean over the images of the gradient of −log p(label), as named tensors."""
    theta = theta.detach().clone().requires_grad_()
    total = 0
    for image in images:
        logits = network.logits(theta, image[None])[0]
        total = total + torch.logsumexp(logits, 0) - logits[label]
    return network.unflatten(torch.autograd.grad(total / len(images), theta, create_graph=True)[0])


def gradient_distance(one, other):
    total = 0
    for name, weights in one.items():
        if weights.dim() < 2:
            continue
        for unit in range(len(weights)):
            a, b = weights[unit].reshape(-1), other[name][unit].reshape(-1)
            total = total + 1 - (a @ b) / (math.sqrt(float(b @ b)) * (a @ a) ** 0.5)
    return total


def gradient_matching(network, theta, images, classes, real, draws):
    total = 0
    for label, some in real.items():
        mine = torch.stack([image for image, c in zip(images, classes, strict=True) if c == label])
        target = class_gradient(network, theta, seen(draws[label], some), label)
        total = total + gradient_distance(
            class_gradient(network, theta, seen(draws[label], mine), label), {k: v.detach() for k, v in target.items()}
        )
    return total


def feature_matching(network, theta, images, classes, real, draws):
    total = 0
    for label, some in real.items():
        mine = [image for image, c in zip(images, classes, strict=True) if c == label]
        ours, theirs = ([network.embed(theta, e[None])[0] for e in seen(draws[label], side)] for side in (mine, some))
        for feature in range(len(ours[0])):
            mean = sum(e[feature] for e in ours) / len(ours)
            total = total + (mean - sum(float(e[feature]) for e in theirs) / len(theirs)) ** 2
    return total


def phi(features, t):
    """One number: the mean of exp(i ⟨t, x⟩)."""
    return sum(torch.exp(1j * (x @ t)) for x in features) / len(features)


def discrepancy(ours, theirs, frequencies, alpha):
    """By the amplitudes and angles of complex numbers."""
    total = 0
    for t in frequencies:
        a, b = phi(ours, t), phi(theirs, t)
        amplitude = (a.abs() - b.abs()) ** 2
        phase = 2 * a.abs() * b.abs() * (1 - torch.cos(a.angle() - b.angle()))
        total = total + (alpha * amplitude + (1 - alpha) * phase) ** 0.5
    return total / len(frequencies)


def characteristic_matching(network, theta, images, classes, real, draws, frequencies, alpha, weight, normalise):
    total = 0
    for label, some in real.items():
        mine = [image for image, c in zip(images, classes, strict=True) if c == label]
        ours, theirs = ([network.embed(theta, e[None])[0] for e in seen(draws[label], side)] for side in (mine, some))
        if normalise:
            ours, theirs = ([x / (x @ x) ** 0.5 for x in side] for side in (ours, theirs))
        total = total + weight * discrepancy(ours, theirs, frequencies, alpha)
    return total


def discrepancy_of_numbers(x, y, t, alpha):
    """Of two samples of plain numbers at one frequency, by Python's own complex arithmetic."""
    a, b = (sum(cmath.exp(1j * t * v) for v in side) / len(side) for side in (x, y))
    amplitude, angle = (abs(a) - abs(b)) ** 2, cmath.phase(a) - cmath.phase(b)
    return math.sqrt(alpha * amplitude + (1 - alpha) * 2 * abs(a) * abs(b) * (1 - math.cos(angle)))
