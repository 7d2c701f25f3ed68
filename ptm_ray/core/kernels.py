"""Maximum mean discrepancy with a mixture of Gaussian kernels.

Source: Gretton et al. 2012; bandwidths from the median distance, widened and narrowed by powers of two: own design.
"""

import torch

from ptm_ray.core.types import Float, Tensor

#: Bandwidths of the mixture, as multiples of the median distance.
SPREAD = (0.5, 1.0, 2.0)


def squared_distances(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    """All pairs; by differences rather than by the inner product, which cancels for near points."""
    return (x[:, None] - y[None]).square().sum(2)


def median_bandwidth(x: Float[Tensor, "n features"]) -> Float[Tensor, ""]:
    """Median distance between different points of a sample; at least the smallest normal number."""
    n = len(x)
    upper = torch.triu_indices(n, n, offset=1, device=x.device)
    distances = squared_distances(x, x)[upper[0], upper[1]].sqrt()
    if n < 2:
        return torch.ones((), dtype=x.dtype, device=x.device)
    return distances.median().clamp_min(torch.finfo(x.dtype).tiny ** 0.25)


def gaussian_mixture(
    x: Float[Tensor, "n features"], y: Float[Tensor, "m features"], bandwidth: Float[Tensor, ""]
) -> Float[Tensor, "n m"]:
    """Mean over the mixture of exp(−d² / 2·bandwidth²)."""
    d2 = squared_distances(x, y)
    kernels = [torch.exp(-d2 / (2 * (factor * bandwidth) ** 2)) for factor in SPREAD]
    return torch.stack(kernels).mean(0)


def mmd2(
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "m features"],
    bandwidth: Float[Tensor, ""],
    *,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    """Squared MMD between two samples.

    Biased (the default): never negative; for two samples of one distribution it is their spread rather than zero.
    Unbiased: leaves out each point's kernel with itself, needs two points a side, averages to zero for equal
    distributions and so can be negative.

    Source: Gretton et al. 2012, equations 3 and 5.
    """
    xx, yy, xy = (
        gaussian_mixture(x, x, bandwidth),
        gaussian_mixture(y, y, bandwidth),
        gaussian_mixture(x, y, bandwidth),
    )
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimator needs two points a side, got {n} and {m}")
    within_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * xy.mean()
