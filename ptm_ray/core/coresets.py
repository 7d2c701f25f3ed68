"""Coresets: the real images that stand for their class best, in the features of a trained network.

Each is a function of one class's features that chooses so many different rows of them. Herding and k-center draw
nothing; they take a generator so that one call serves all.
"""

import warnings
from collections.abc import Callable, Sequence

import torch

from ptm_ray.core.params import Network
from ptm_ray.core.synthetic import pooled_rows
from ptm_ray.core.types import Float, Int, Tensor

#: Images that go through the network at once.
CHUNK = 250
#: Rounds of k-means: more than a thousand images take to settle.
ROUNDS = 50

#: (n, features), a count, a generator → as many different rows, (count,).
Choice = Callable[[Tensor, int, torch.Generator], Tensor]


def herd(
    features: Float[Tensor, "n features"], count: int, generator: torch.Generator | None = None
) -> Int[Tensor, " count"]:
    """Rows whose running mean stays nearest to the mean of all, chosen one after another, each once.

    Source: Welling 2009 (Herding dynamical weights to learn); greedy, as iCaRL and the coreset baselines of dataset
    distillation use it.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool)
    chosen = []
    for number in range(1, count + 1):
        distances = ((total + features) / number - mean).square().sum(1)
        row = int(distances.masked_fill(~free, torch.inf).argmin())
        free[row] = False
        total = total + features[row]
        chosen.append(row)
    return torch.tensor(chosen)


def k_center(
    features: Float[Tensor, "n features"], count: int, generator: torch.Generator | None = None
) -> Int[Tensor, " count"]:
    """The row nearest to the mean of all, then again and again the one farthest from those chosen, each once.

    Source: Sener & Savarese 2018 (Active learning for convolutional neural networks: a core-set approach), algorithm 1.
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
        # Below any distance, so that of two equal images neither is taken twice.
        nearest[chosen[-1]] = -1.0
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def k_means(features: Float[Tensor, "n features"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """A row for each of `count` centroids: the nearest, or where two share it, those that are nearest together.

    The centroids begin at random rows; a cluster that loses all of its own keeps the centroid that it had.
    Source: Lloyd 1982 (Least squares quantization in PCM), by scipy.
    """
    # Here and not above: scipy takes a second to load, and few runs ask for it.
    from scipy.cluster.vq import kmeans2
    from scipy.optimize import linear_sum_assignment

    points = features.double()
    first = points[torch.randperm(len(points), generator=generator)[:count]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        centroids, _ = kmeans2(points.numpy(), first.numpy(), iter=ROUNDS, minit="matrix")
    distances = torch.cdist(torch.from_numpy(centroids), points)
    return torch.from_numpy(linear_sum_assignment(distances.numpy())[1])


def coreset_rows(
    choice: Choice,
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    ipc: int,
    names: Sequence[str],
    generator: torch.Generator,
) -> Int[Tensor, " chosen"]:
    """`ipc` rows of each class that `choice` takes by the network's features, class by class; see `pooled_rows`."""

    def choose(label: int, rows: Tensor) -> Tensor:
        with torch.no_grad():
            features = torch.cat([network.embed(theta, images[chunk]) for chunk in torch.split(rows, CHUNK)])
        # One image after another is chosen, and k-means is scipy's.
        return rows[choice(features.cpu(), ipc, generator)]

    return pooled_rows(labels, ipc, names, generator, choose)
