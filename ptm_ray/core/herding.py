"""Herding: the real images that stand for their class best, in the features of a trained network.

Source: Welling 2009 (Herding dynamical weights to learn); greedy, as iCaRL and the coreset baselines of dataset
distillation use it.
"""

from collections.abc import Sequence

import torch

from ptm_ray.core.params import Network
from ptm_ray.core.synthetic import pooled_rows
from ptm_ray.core.types import Float, Int, Tensor

#: Images that go through the network at once.
CHUNK = 250


def herd(features: Float[Tensor, "n features"], count: int) -> Int[Tensor, " count"]:
    """Rows whose running mean stays nearest to the mean of all, chosen one after another, each once."""
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


def herded_rows(
    network: Network,
    theta: Float[Tensor, " params"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    ipc: int,
    names: Sequence[str],
    generator: torch.Generator,
) -> Int[Tensor, " chosen"]:
    """`ipc` herded rows of each class, class by class; see `pooled_rows`."""

    def choose(label: int, rows: Tensor) -> Tensor:
        with torch.no_grad():
            features = torch.cat([network.embed(theta, images[chunk]) for chunk in torch.split(rows, CHUNK)])
        return rows[herd(features, ipc)]

    return pooled_rows(labels, ipc, names, generator, choose)
