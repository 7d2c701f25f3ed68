"""Images for an audit: taken out of the training split, and put back or not as a coin falls."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ptm_ray.core.seeds import Seeds
from ptm_ray.data import MedicalDataset
from ptm_ray.data.dataset import Split
from ptm_ray.errors import ConfigError

#: As many as are taken where nobody says how many: a bound on ε up to 4 can be seen with half of them.
USUAL = 400
#: Share of a class that may become canaries, so that what is audited is still the dataset.
MOST_OF_A_CLASS = 0.25
#: With fewer, no attack could be told from luck.
FEWEST = 16


@dataclass(frozen=True)
class Canaries:
    """Images (n, height, width, channels) uint8 and the labels (n,) that they are trained on with, of which `members`
    (n,) are in `audited`, and none in `without`: the dataset otherwise.

    The first half, `mislabelled` (n,), have a wrong label: nobody else's image teaches it, so that whatever knows it
    has it from them. They stand for the patients whose records are unlike all others. The second half are as they were.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    mislabelled: npt.NDArray[np.bool_]
    members: npt.NDArray[np.bool_]
    audited: MedicalDataset
    without: MedicalDataset

    def __len__(self) -> int:
        return len(self.labels)


def with_canaries(dataset: MedicalDataset, count: int | None, seed: int, ipc: int) -> Canaries:
    """Takes `count` training images for canaries (by default 400, or as many as there can be), each with chance a half
    put back.

    Of no class more than a quarter, and every class keeps `ipc` images. None of which the dataset holds a copy, as that
    would be in whatever the coin says. Raises `ConfigError` for a count that is too large for that, or too small to
    find anything with, and where all coins of one half fell alike.
    """
    train, classes = dataset.train, dataset.num_classes
    draw = Seeds(seed).stream("canaries")
    sizes = np.bincount(train.labels, minlength=classes)
    single = _without_copies(dataset)
    spare = np.minimum((MOST_OF_A_CLASS * sizes).astype(int), np.maximum(0, sizes - ipc))
    spare = np.minimum(spare, np.bincount(train.labels[single], minlength=classes))
    most = int(spare.sum())
    if most < FEWEST:
        raise ConfigError(
            f"{dataset.name} can spare {most} of {len(train)} training images as canaries (at most a quarter of each "
            f"class, which keeps {ipc}, and no copies), and an audit needs {FEWEST}; it is too small to be audited so"
        )
    count = min(USUAL, most) if count is None else count
    if not FEWEST <= count <= most:
        raise ConfigError(
            f"{count} canaries: {dataset.name} can spare {most} of {len(train)} training images (at most a quarter of "
            f"each class, and no copies), and fewer than {FEWEST} tell nothing; take a number between"
        )
    order = torch.randperm(len(train), generator=draw).numpy()
    order = order[single[order]]
    # Of each class, those that come first in that order, as many as it can spare.
    place = np.empty(len(train), dtype=np.int64)
    for label in range(classes):
        own = order[train.labels[order] == label]
        place[own] = np.arange(len(own))
    rows = order[place[order] < spare[train.labels[order]]][:count]
    mislabelled = np.arange(count) < count // 2
    shift = torch.randint(1, classes, (count,), generator=draw).numpy()
    labels = np.where(mislabelled, (train.labels[rows] + shift) % classes, train.labels[rows])
    members = torch.randint(2, (count,), generator=draw).bool().numpy()
    for half in (members[mislabelled], members[~mislabelled]):
        if half.all() or not half.any():
            # Thrown again until they please, they would be no fair coins.
            raise ConfigError(f"of {len(half)} coins all fell alike with seed {seed}; take another, or more canaries")

    left = np.setdiff1d(np.arange(len(train)), rows)
    rest = Split(train.images[left], train.labels[left])
    planted = Split(
        np.concatenate([rest.images, train.images[rows[members]]]), np.concatenate([rest.labels, labels[members]])
    )
    note = f"{int(members.sum())} of {count} canaries of an audit are in it, half of them mislabelled; not to be shared"
    return Canaries(
        images=train.images[rows],
        labels=labels,
        mislabelled=mislabelled,
        members=members,
        audited=replace(dataset, train=planted, notes=(*dataset.notes, note)),
        without=replace(dataset, train=rest),
    )


def _without_copies(dataset: MedicalDataset) -> npt.NDArray[np.bool_]:
    """Which training images stand nowhere else, (n,): neither there again nor in another split."""
    train = dataset.train
    _, image, copies = np.unique(train.prints, return_inverse=True, return_counts=True)
    alone: npt.NDArray[np.bool_] = copies[image] == 1
    return alone & ~train.stand_in(dataset.val) & ~train.stand_in(dataset.test)
