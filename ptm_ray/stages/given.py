"""A set that somebody hands over, ours or another's, as networks see it that are scored on a dataset."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ptm_ray.config import DistillConfig
from ptm_ray.core.synthetic import Synthetic
from ptm_ray.core.whitening import Whitening
from ptm_ray.data import MedicalDataset
from ptm_ray.data.load import load_training_images
from ptm_ray.errors import DataError, readable
from ptm_ray.stages.problem import Problem
from ptm_ray.store.artefact import SyntheticSet, place_of_set
from ptm_ray.store.places import Place

Floats = npt.NDArray[np.float32]
#: Least of a probability whose logarithm is taken.
LEAST = 1e-12


@dataclass(frozen=True)
class SeenAsMade(Problem):
    """A problem whose images, real ones too, are normalised as those were that a set was made from.

    Networks that are trained on the set know no other normalisation, whatever images they are tested on.
    """

    of_set: Whitening = field(kw_only=True)

    @cached_property
    def whitening(self) -> Whitening:
        """The set's own."""
        return self.of_set


@dataclass(frozen=True)
class GivenSet:
    """`images` (n, channels, height, width) as networks see them, `probabilities` (n, classes) in the dataset's order.

    `whitening`: how networks see images, the set's own where it says which; `inner_lr`: where it has learned one.
    """

    images: Floats
    probabilities: Floats
    whitening: Whitening
    inner_lr: float | None = None

    def problem(self, dataset: MedicalDataset, config: DistillConfig, device: str = "cpu") -> Problem:
        """What networks are scored on that were trained on it."""
        return SeenAsMade(dataset, config, device, of_set=self.whitening)

    def synthetic(self, device: str) -> Synthetic:
        """As a distillation would hand it on."""
        images, labels = torch.tensor(self.images), torch.tensor(self.probabilities)
        hard = bool(((labels == 0) | (labels == 1)).all())
        made = Synthetic(
            images,
            labels.argmax(1),
            torch.tensor(self.inner_lr or 1.0).log(),
            labels.shape[1],
            None if hard else labels.clamp_min(LEAST).log(),
        )
        return made.to(device)

    @property
    def digest(self) -> str:
        """Of what it holds."""
        held = hashlib.sha256(repr((self.images.shape, self.inner_lr)).encode())
        seen = self.whitening
        parts = [seen.mean, seen.std] if seen.zca is None else [seen.mean, seen.std, seen.zca.stored]
        for array in (self.images, self.probabilities, *(part.numpy() for part in parts)):
            held.update(np.ascontiguousarray(array).tobytes())
        return held.hexdigest()


def find_set(where: str | Path) -> SyntheticSet | Path:
    """Our set, or the path of another's. Raises `DataError` where there is neither."""
    found = place_of_set(where)
    if found is not None:
        return SyntheticSet.load(found)
    place = Place.of(where)
    if place.url is not None:
        raise DataError(f"no synthetic set {place}; give the URL of a set of ours, or of its run")
    with readable(place, DataError):
        if not place.local.exists():
            raise DataError(f"no synthetic set {place}; give the folder of a set, or an npz, folder or table of images")
    return place.local


def as_given(made: SyntheticSet | Path, dataset: MedicalDataset, config: DistillConfig) -> GivenSet:
    """A set, to be scored on this dataset. Raises `DataError` where classes or shapes don't agree."""
    if isinstance(made, SyntheticSet):
        names, images = tuple(made.class_names), made.images
        whitening, probabilities, rates = made.whitening, made.probabilities, made.recipe.get("inner_lr") or {}
        # Of segments that begin half way along: rates are learned on a logarithmic scale.
        ends = [rates[name] for name in ("random_first", "random_last") if name in rates]
        inner_lr = math.sqrt(math.prod(ends)) if len(ends) == 2 else None
    else:
        # Pictures of any size become as large as those that networks are tested on.
        split, names = load_training_images(made, dataset.resolution)
        probabilities = np.eye(len(names), dtype=np.float32)[split.labels]
        problem = Problem(dataset, config).check()
        images, whitening, inner_lr = problem.normalise(split.images), problem.whitening, None
    if len(names) != dataset.num_classes:
        raise DataError(f"the set has {len(names)} classes, {dataset.name} has {dataset.num_classes}; they must agree")
    if images.shape[1:] != (dataset.channels, dataset.resolution, dataset.resolution):
        raise DataError(
            f"the set's images are {images.shape[1:]}, those of {dataset.name} "
            f"{(dataset.channels, dataset.resolution, dataset.resolution)} (channels, height, width); they must agree"
        )
    return GivenSet(images, _by_class(probabilities, names, dataset.class_names), whitening, inner_lr)


def _by_class(probabilities: Floats, names: Sequence[str], wanted: Sequence[str]) -> Floats:
    """(n, classes) in the dataset's order of classes, where the set has the same ones in another.

    Class folders are numbered in alphabetical order, whatever their numbers were where the images come from.
    """
    # Of a set whose classes are known by number alone they are the dataset's numbers.
    numbers = [str(label) for label in range(len(names))]
    if list(names) in (list(wanted), numbers) or sorted(set(names)) != sorted(wanted):
        return probabilities
    return np.ascontiguousarray(probabilities[:, [names.index(name) for name in wanted]])
