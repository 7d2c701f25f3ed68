"""The synthetic set while it is being learned: images, labels, inner lr, and how it starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ptm_ray.core import augment
from ptm_ray.core.batch import Batch
from ptm_ray.core.types import Float, Int, Tensor
from ptm_ray.errors import NotEnoughImages

#: Standard deviation of initial noise, in those of normalised pixels. What is learned shows through it sooner than
#: through noise of the images' own variance: on held-out images of four training sets, ten images per class and 80
#: outer steps, better by 1.5 to 4.7 points; at one image per class by 4.4, 0.4 and -4.0 in three of them. One seed.
NOISE_STD = 0.3

#: Images of a class that are looked at where choosing some costs a forward pass each: more hardly change the choice.
POOL = 1000


class Position(NamedTuple):
    """What the inner lr of a segment depends on: `along`, where a random one begins, from −1 to 1 over the trajectory;
    `progressive`, 1 for progressive ones."""

    along: float = 0.0
    progressive: float = 0.0


ANYWHERE = Position()


def _level() -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    return torch.tensor(0.0), torch.tensor(0.0)


@dataclass
class Synthetic:
    """Learned tensors, in normalised pixel units. `label_logits` is None where labels are hard.

    `tilts`: log α of a segment is `log_lr` and their product with its `Position`.
    """

    images: Float[Tensor, "n channels height width"]
    classes: Int[Tensor, " n"]
    log_lr: Float[Tensor, ""]
    num_classes: int
    label_logits: Float[Tensor, "n classes"] | None = None
    tilts: tuple[Float[Tensor, ""], Float[Tensor, ""]] = field(default_factory=_level)

    def to(self, device: torch.device | str) -> "Synthetic":
        """The same there, all of it; itself where it is there already."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Synthetic":
        """The set whose tensors are these ones, changed."""
        along, progressive = self.tilts
        return Synthetic(
            change(self.images),
            change(self.classes),
            change(self.log_lr),
            self.num_classes,
            None if self.label_logits is None else change(self.label_logits),
            (change(along), change(progressive)),
        )

    def log_lr_at(self, position: Position) -> Float[Tensor, ""]:
        """log α of a segment there."""
        return self.log_lr + sum(tilt * part for tilt, part in zip(self.tilts, position, strict=True))

    def inner_lrs(self) -> dict[str, float]:
        """α of progressive segments, and of random ones that begin at the trajectory's first or last snapshot."""
        positions = {
            "progressive": Position(progressive=1.0),
            "random_first": Position(along=-1.0),
            "random_last": Position(along=1.0),
        }
        return {name: float(self.log_lr_at(position).exp()) for name, position in positions.items()}

    def labels(self) -> Float[Tensor, "n classes"]:
        """Label probabilities: one-hot, or the softmax of the learned logits."""
        if self.label_logits is None:
            return F.one_hot(self.classes, self.num_classes).to(self.images.dtype)
        return self.label_logits.softmax(1)


def class_rows(labels: Int[Tensor, " n"], label: int) -> Int[Tensor, " rows"]:
    """Where a class stands among the images."""
    return torch.nonzero(labels == label).flatten()


def require_enough(name: str, count: int, ipc: int) -> None:
    """Raises `NotEnoughImages` where a class has fewer real images than are asked for."""
    if count < ipc:
        raise NotEnoughImages(
            f"class {name!r} has {count} training images, ipc is {ipc}; lower --ipc, "
            "or use --images.init noise or real-resampled"
        )


def require_enough_in_all(num_images: int, count: int) -> None:
    """Raises `NotEnoughImages` where there are fewer real images than are asked for, whatever their class."""
    if num_images < count:
        raise NotEnoughImages(f"there are {num_images} training images, ipc × classes is {count}; lower --ipc")


def pooled_rows(
    labels: Int[Tensor, " n"],
    ipc: int,
    names: Sequence[str],
    generator: torch.Generator,
    choose: Callable[[int, Tensor], Tensor],
) -> Int[Tensor, " chosen"]:
    """`ipc` rows of each class, class by class, that `choose` takes from at most `POOL` random ones of it.

    Raises `NotEnoughImages` where a class has fewer than `ipc`.
    """
    chosen = []
    for label, name in enumerate(names):
        rows = class_rows(labels, label)
        require_enough(name, len(rows), ipc)
        pool = rows[torch.randperm(len(rows), generator=generator)[: max(POOL, ipc)]]
        chosen.append(choose(label, pool))
    return torch.cat(chosen)


def balanced_rows(
    labels: Int[Tensor, " n"],
    ipc: int,
    names: Sequence[str],
    generator: torch.Generator,
    *,
    replacement: bool = False,
) -> Int[Tensor, " chosen"]:
    """`ipc` random rows of each class, class by class.

    Raises `NotEnoughImages` where a class has fewer and `replacement` (resampling) is off.
    """
    chosen = []
    for label, name in enumerate(names):
        rows = class_rows(labels, label)
        if not replacement:
            require_enough(name, len(rows), ipc)
        if len(rows) < ipc:
            order = torch.randint(len(rows), (ipc,), generator=generator)
        else:
            order = torch.randperm(len(rows), generator=generator)[:ipc]
        chosen.append(rows[order])
    return torch.cat(chosen)


def natural_rows(num_images: int, count: int, generator: torch.Generator) -> Int[Tensor, " chosen"]:
    """`count` random rows of all, whatever their class: as frequent as classes are, and a rare one may be missing.

    Raises `NotEnoughImages`.
    """
    require_enough_in_all(num_images, count)
    return torch.randperm(num_images, generator=generator)[:count]


def from_real(
    images: Float[Tensor, "real channels height width"],
    labels: Int[Tensor, " real"],
    rows: Int[Tensor, " chosen"],
    num_classes: int,
    lr: float,
) -> Synthetic:
    """Starts from these real images; what they show can be recognised in the result."""
    return Synthetic(images[rows].clone(), labels[rows].clone(), torch.tensor(lr).log(), num_classes)


def from_noise(
    shape: tuple[int, int, int], num_classes: int, ipc: int, lr: float, generator: torch.Generator
) -> Synthetic:
    """Starts from Gaussian noise around the mean of all pixels; no image is touched."""
    classes = torch.arange(num_classes).repeat_interleave(ipc)
    images = NOISE_STD * torch.randn(len(classes), *shape, generator=generator)
    return Synthetic(images, classes, torch.tensor(lr).log(), num_classes)


def inner_batches(
    num_images: int, batch_size: int, steps: int, ops: Sequence[str], generator: torch.Generator
) -> list[Batch]:
    """What each of the student's steps trains on: shuffled passes through the set, a fresh augmentation each.

    Where a whole set fits one batch every step sees all of it. Passes are cut into equal batches; what is left of a
    pass joins the next one, so that no step is noisier than the others.
    """
    size = min(batch_size, num_images)
    needed = steps * size
    passes = [torch.randperm(num_images, generator=generator) for _ in range(-(-needed // num_images))]
    rows = torch.cat(passes)[:needed].view(steps, size)
    return [Batch(row, augment.draw(ops, size, generator)) for row in rows]
