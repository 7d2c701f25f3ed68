"""How far along the experts' trajectories a set already is before it has learned anything.

Ten real images of a class teach a network what experts learn in many of their steps. Segments that begin at the
initialisation would then teach them what they show already, and at that the worse for it: on held-out images, sets of
ten images per class lost up to six points by them. So matching begins where experts still know less than the first set
teaches. They must know less by more than chance: an early start costs little, and a late one up to twelve points of
balanced accuracy where the rarest class has three validation images, by whose luck it was found. Own design; PTM always
begins at snapshot 0, which `schedule.start` can ask for.
"""

from collections.abc import Callable

import torch

from ptm_ray.core.params import Network
from ptm_ray.core.types import Float, Int, Tensor
from ptm_ray.evaluation.metrics import hits
from ptm_ray.stages.selection import DOUBT, balanced_accuracy, standard_error

#: Experts that are asked at each snapshot, at most.
EXPERTS = 3
#: Validation images that they are asked about, at most.
IMAGES = 1000


def head_start(
    network: Network,
    vector: Callable[[int, int], Tensor],
    num_experts: int,
    last: int,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    known: Float[Tensor, " n"],
    generator: torch.Generator,
) -> int:
    """Last snapshot, of 0 … `last`, up to which experts surely know fewer of these images than `known` says.

    `vector(expert, snapshot)` are parameters. `known` is, for each image, the share of networks trained on the first
    set that know its class. Balanced accuracy is compared, paired by image. The first snapshot where it is in doubt
    ends the search: what experts know does not rise evenly, and a later dip says nothing.
    """
    rows = torch.randperm(len(labels), generator=generator)[:IMAGES]
    images, labels, known = images[rows], labels[rows], known[rows]

    def surely_less(snapshot: int) -> bool:
        found = []
        for expert in range(min(EXPERTS, num_experts)):
            with torch.no_grad():
                found.append(hits(network.logits(vector(expert, snapshot), images).softmax(1), labels))
        lead = known - torch.stack(found).mean(0)
        return balanced_accuracy(lead, labels) > DOUBT * standard_error(lead, labels)

    return next((snapshot - 1 for snapshot in range(1, last + 1) if not surely_less(snapshot)), last)
