"""Slow, obvious versions of HoP-TM's loss: parameters one by one, and all cosines between all differences."""

import torch


def counting(before, errors, path, below, least):
    """Which parameters count, as a list: from before, or with a small error, or among the smallest if need be."""
    counts = [known or error < below * path.mean() for known, error in zip(before, errors, strict=True)]
    carried = sum(float(part) for part, counted in zip(path, counts, strict=True) if counted)
    if carried < least * float(path.sum()):
        carried = 0.0
        for k in sorted(range(len(errors)), key=lambda k: float(errors[k])):
            counts[k] = True
            carried += float(path[k])
            if carried >= least * float(path.sum()):
                break
    return torch.tensor([bool(counted) for counted in counts])


def masked_loss(student, start, target, counted):
    """Squared distance over squared path, of those that count."""
    return ((student - target)[counted] ** 2).sum() / ((start - target)[counted] ** 2).sum()


def cosines(states):
    """At each of three states, the cosine between every two of its normalised differences to all three."""
    found = []
    for at in states:
        differences = [other - at for other in states]
        units = [d / d.norm() if bool(d.any()) else d * 0 for d in differences]
        found += [one @ other for one in units for other in units]
    return torch.stack(found)


def shape_potential(student, expert):
    """Smooth L1 between the 27 cosines of each, entry by entry."""
    apart = (cosines(student) - cosines(expert)).abs()
    return torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
