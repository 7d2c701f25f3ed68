"""MMD² by a plain double loop over points."""

import math

from ptm_ray.core.kernels import SPREAD


def kernel(a, b, bandwidth):
    d2 = sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))
    return sum(math.exp(-d2 / (2 * (s * float(bandwidth)) ** 2)) for s in SPREAD) / len(SPREAD)


def mmd2_by_double_loop(x, y, bandwidth, unbiased=False):
    def mean(p, q, same):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(q)) if not (same and unbiased and i == j)]
        return sum(kernel(p[i], q[j], bandwidth) for i, j in pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
