"""`MedicalDataset`: what every source becomes, checked once, before any work is spent on it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ptm_ray.errors import DataError

#: Augmentation for images without a meaningful side, and without colour. See `MedicalDataset.augmentation`.
COLOUR_OPS = ("flip", "scale", "rotate", "crop", "cutout", "brightness", "saturation", "contrast")
#: What folders and tables may call a split → what it is called here.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
#: Classes that a summary names.
MOST_SHOWN = 12
#: Floats that come to fewer grey levels than this were on another scale than ours.
FEWEST_LEVELS = 32


@dataclass(frozen=True)
class Split:
    """Images (n, height, width, channels) uint8 and labels (n,) int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        # In one order in memory: sums over pixels round by it, and equal images would give unequal networks.
        object.__setattr__(self, "images", np.ascontiguousarray(self.images))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def prints(self) -> npt.NDArray[np.uint64]:
        """A hash of each image's pixels, (n,): of two images that share it, one is a copy of the other."""
        each = (hashlib.blake2b(image, digest_size=8).digest() for image in self.images)
        return np.frombuffer(b"".join(each), dtype=np.uint64)

    def stand_in(self, other: "Split") -> npt.NDArray[np.bool_]:
        """Which of these images are images of the other split too, (n,)."""
        return np.isin(self.prints, other.prints)


@dataclass(frozen=True)
class Source:
    """What a reader found: the splits that are there (`train` always), and what is known about them."""

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    task: str
    licence: str = "not stated"
    source: str = ""
    side_matters: bool = False
    notes: tuple[str, ...] = field(default=())
    #: Of each split, whose images they are, by number, (n,); empty where that is not told. Needed for cutting splits,
    #: and not kept longer.
    patients: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class MedicalDataset:
    """Labelled images in three splits.

    `side_matters`: left and right mean something (chest X-ray, fundus), so nothing may be mirrored. `notes` are
    sentences about what was done on the way in, for the user and the card. `licence` is as its source states it.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    task: str
    licence: str = "not stated"
    source: str = ""
    side_matters: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[3])

    @property
    def resolution(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def summary(self) -> str:
        """What it is in one line, for whoever is about to spend hours on it."""
        counts = np.bincount(self.train.labels, minlength=self.num_classes)
        named = [f"{name} {count}" for name, count in zip(self.class_names, counts, strict=True)]
        shown = ", ".join(named if len(named) <= MOST_SHOWN else [*named[:MOST_SHOWN], "…"])
        colour = "in colour" if self.channels == 3 else "in grayscale"
        return (
            f"{self.num_classes} classes ({shown}), {len(self.train)} training, {len(self.val)} validation and "
            f"{len(self.test)} test images of {self.resolution}×{self.resolution} pixels {colour}"
        )

    @property
    def augmentation(self) -> tuple[str, ...]:
        """DSA's ops as they suit these images: no mirror where the side matters, no saturation without colour."""
        dropped = {"flip"} if self.side_matters else set()
        if self.channels == 1:
            dropped.add("saturation")
        return tuple(op for op in COLOUR_OPS if op not in dropped)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every image, label and class name: two datasets that share it are the same."""
        digest = hashlib.sha256()
        for name in self.class_names:
            digest.update(name.encode() + b"\0")
        for split in (self.train, self.val, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(split.images.tobytes())
            digest.update(split.labels.tobytes())
        return digest.hexdigest()


def as_uint8(images: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.uint8]:
    """Images as (n, height, width, channels) uint8; floats in [0, 1] are scaled to it.

    Raises `DataError` for shapes that are no images, values that are not finite or out of range.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{where}: images have shape {images.shape}; expected (n, height, width) for grayscale "
            "or (n, height, width, 3) for RGB"
        )
    if images.shape[1] != images.shape[2]:
        raise DataError(
            f"{where}: images are {images.shape[1]}×{images.shape[2]}; square ones are needed: crop or resize them"
        )
    if images.dtype.kind in "bui" and images.size and images.max() == 1:
        raise DataError(f"{where}: whole numbers no higher than 1 would be black; scale them to 0–255")
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    values = images.astype(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DataError(f"{where}: {bad} pixel values are NaN or infinite; mend or drop those images")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    fractions = np.issubdtype(images.dtype, np.floating)
    # Between 1 and 2 a float is no 0–255 image but a 0–1 image that overshoots, as resizing makes them.
    if low < 0 or high > 255 or (fractions and 1 < high < 2):
        raise DataError(f"{where}: pixels run from {low:g} to {high:g}; scale them to 0–255 (uint8) or 0–1 (float)")
    scale = 255.0 if fractions and high <= 1.0 else 1.0
    levels = np.rint(values * scale)
    few = 0 < (high - low) * scale < FEWEST_LEVELS - 1
    # Fractions of 255 that were written with few digits lose nothing.
    if few and not np.allclose(levels, values * scale, rtol=0, atol=0.01):
        raise DataError(
            f"{where}: pixels run from {low:g} to {high:g}, which would leave fewer than {FEWEST_LEVELS} grey levels; "
            "scale them to 0–255 (uint8) or 0–1 (float)"
        )
    return levels.astype(np.uint8)


def as_labels(labels: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.int64]:
    """Labels as (n,) int64. Raises `DataError` for several labels an image and for numbers that are not whole."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {labels.shape}; give one class per image, (n,) or (n, 1): several an image "
            "(multi-label) are not supported yet"
        )
    if labels.dtype.kind not in "iufb":
        raise DataError(f"{where}: labels are of type {labels.dtype}; give whole numbers 0, 1, 2, …")
    values = labels.astype(np.float64)
    wrong = values[~(np.isfinite(values) & (values == np.rint(values)))]
    if len(wrong):
        raise DataError(f"{where}: label {wrong[0]:g} is not a whole number; give classes as 0, 1, 2, …")
    return values.astype(np.int64)


def make_split(images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], where: str) -> Split:
    """A checked split. Raises `DataError` where images and labels don't belong together."""
    split = Split(as_uint8(images, where), as_labels(labels, where))
    if len(split.images) != len(split.labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; each image needs exactly one")
    if len(split) == 0:
        raise DataError(f"{where}: no images")
    return split


def numbered_classes(highest: int, num_images: int, where: str) -> tuple[str, ...]:
    """Names for classes that are known by number alone: "0" to the highest label.

    Raises `DataError` where there are more classes than images, as when the labels are ages or patient numbers.
    """
    if highest >= num_images:
        raise DataError(
            f"{where}: label {highest} among {num_images} images is no class number; give classes as 0, 1, 2, …"
        )
    return tuple(map(str, range(highest + 1)))


def task_of(num_classes: int) -> str:
    """MedMNIST's word for it."""
    return "binary-class" if num_classes == 2 else "multi-class"


def numbered_patients(told: Mapping[str, Sequence[object]], where: str) -> dict[str, npt.NDArray[np.int64]]:
    """Split → whose images they are, (n,), by a number for each name; who has none stands for nobody else.

    `told` has a name or number for every image of each split.
    """
    numbers: dict[object, int] = {}
    found = {}
    for part, names in told.items():
        own = [object() if name is None or name != name or name == "" else name for name in names]
        try:
            found[part] = np.array([numbers.setdefault(name, len(numbers)) for name in own], dtype=np.int64)
        except TypeError as error:
            raise DataError(f"{where}: a patient is a name or a number, one for every image ({error})") from error
    return found


def check_labels(split: Split, class_names: Sequence[str], where: str) -> None:
    """Raises `DataError` for a label that is no class's number."""
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= len(class_names):
        raise DataError(
            f"{where} labels run from {low} to {high}, but there are {len(class_names)} classes "
            f"(0 to {len(class_names) - 1}); mend the labels or name every class"
        )


def check(dataset: MedicalDataset) -> MedicalDataset:
    """The dataset, once its splits and classes are known to fit together, with notes of what they share and lack.

    Raises `DataError`.
    """
    _check_names(dataset)
    for part, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test)):
        if split.images.shape[1:] != dataset.train.images.shape[1:]:
            raise DataError(
                f"{dataset.name}: {part} images are {split.images.shape[1:]}, train images "
                f"{dataset.train.images.shape[1:]}; all splits need one size"
            )
        check_labels(split, dataset.class_names, f"{dataset.name}: {part}")
    lacking = _lacking(dataset.train, dataset)
    if lacking:
        raise DataError(
            f"{dataset.name}: class {lacking[0]!r} has no training image; drop the class or add images of it"
        )
    notes = _notes(dataset)
    return replace(dataset, notes=(*dataset.notes, *notes)) if notes else dataset


def _check_names(dataset: MedicalDataset) -> None:
    names = dataset.class_names
    if len(names) < 2:
        only = " ".join(map(repr, names))
        raise DataError(f"{dataset.name}: only one class ({only}); two or more are needed to tell apart")
    twice = [name for label, name in enumerate(names) if name in names[:label]]
    if twice:
        raise DataError(f"{dataset.name}: two classes are called {twice[0]!r}; give each a name of its own")
    for name in (dataset.name, *names):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            # As it comes from a folder's name in another encoding.
            raise DataError(f"the name {name!r} is no UTF-8; rename it") from error


def _lacking(split: Split, dataset: MedicalDataset) -> list[str]:
    """The classes of which it has no image."""
    counts = np.bincount(split.labels, minlength=dataset.num_classes)
    return [name for name, count in zip(dataset.class_names, counts, strict=True) if count == 0]


def _notes(dataset: MedicalDataset) -> list[str]:
    """What makes scores on validation and test images say less than they seem to."""
    notes = []
    training, validation = ("training", dataset.train), ("validation", dataset.val)
    for part, split, others in (("val", dataset.val, [training]), ("test", dataset.test, [training, validation])):
        lacking = _lacking(split, dataset)
        if lacking:
            notes.append(f"{part} has no image of {', '.join(lacking)}, which no score on it speaks of")
        for word, other in others:
            copies = int(split.stand_in(other).sum())
            if copies:
                notes.append(f"{copies} of {len(split)} {part} images are {word} images too")
    return notes
