"""How far along the experts' trajectories a set already is before it has learned anything.

Ten real images of a class teach a network what experts learn in most of their steps. Segments that begin at the
initialisation would then teach them what they show already, and at that the worse for it: on held-out images, sets of
ten images per class lost up to six points by them. So matching begins where experts still know a little less than
the first set teaches. Own design; PTM always begins at snapshot 0, which `schedule.start` can ask for.
"""

from collections.abc import Callable

import torch

from ptm_ray.core.params import Network
from ptm_ray.core.trajectory import Vector
from ptm_ray.core.types import Float, Int, Tensor
from ptm_ray.evaluation.metrics import hits
from ptm_ray.stages.selection import balanced_accuracy

#: Experts that are asked at each snapshot, at most.
EXPERTS = 3
#: Validation images that they are asked about, at most.
IMAGES = 1000


def head_start(
    network: Network,
    vector: Callable[[int, int], Vector],
    num_experts: int,
    last: int,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    known: Float[Tensor, " n"],
    generator: torch.Generator,
) -> int:
    """Last snapshot, of 0 … `last`, at which experts know fewer of these images than `known` says; 0 if none does.

    `vector(expert, snapshot)` are parameters. `known` is, for each image, the share of networks trained on the first
    set that know its class. Balanced accuracy is compared, by bisection, as it rises along a trajectory.
    """
    rows = torch.randperm(len(labels), generator=generator)[:IMAGES]
    images, labels = images[rows], labels[rows]
    wanted = balanced_accuracy(known[rows], labels)

    def accuracy(snapshot: int) -> float:
        found = []
        for expert in range(min(EXPERTS, num_experts)):
            theta = torch.from_numpy(vector(expert, snapshot).copy())
            with torch.no_grad():
                found.append(hits(network.logits(theta, images).softmax(1), labels))
        return balanced_accuracy(torch.stack(found).mean(0), labels)

    low, high = 0, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        if accuracy(middle) < wanted:
            low = middle
        else:
            high = middle
    return low
