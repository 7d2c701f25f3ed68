"""Cutting a missing split from train."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ptm_ray.core.seeds import Seeds
from ptm_ray.data.dataset import MedicalDataset, Source, Split
from ptm_ray.errors import DataError

Rows = npt.NDArray[np.int64]


def cut(split: Split, share: float, stage: str, names: Sequence[str]) -> tuple[Split, Split]:
    """(rest, cut): `share` of every class, at least one image of it, chosen at random but always the same.

    The seed is fixed rather than the run's, so that every run on a dataset sees the same validation images. Copies of
    an image stay together, unless their class has no other image. Raises `DataError` where a class has a single image.
    """
    draw = np.random.default_rng(Seeds(0).derive(stage))
    chosen = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label)
        if len(rows) < 2:
            name = names[label] if 0 <= label < len(names) else str(label)
            raise DataError(
                f"class {name!r} has one image left, too few to cut a {stage} split from; add images or that split"
            )
        order, ends = _copies_together(draw.permutation(rows), split)
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        if len(ends):
            count = ends[np.abs(ends - count).argmin()]
        chosen[order[:count]] = True
    _undo_copies_of_other_classes(chosen, split)
    return (
        Split(split.images[~chosen], split.labels[~chosen]),
        Split(split.images[chosen], split.labels[chosen]),
    )


def _copies_together(order: Rows, split: Split) -> tuple[Rows, Rows]:
    """These rows with copies of an image beside the first of them, and how many may be cut without tearing any apart.

    Without copies the order is as it was, and any number may.
    """
    _, first, image = np.unique(split.prints[order], return_index=True, return_inverse=True)
    place = first[image]
    by_place = np.argsort(place, kind="stable")
    return order[by_place], np.flatnonzero(np.diff(place[by_place])) + 1


def _undo_copies_of_other_classes(chosen: npt.NDArray[np.bool_], split: Split) -> None:
    """Of an image that stands under two labels, both stay in the rest, where their class has others to cut."""
    torn = chosen & np.isin(split.prints, split.prints[~chosen])
    for label in np.unique(split.labels[torn]):
        own = chosen & (split.labels == label)
        if (own & ~torn).any():
            chosen[own & torn] = False


def complete(source: Source) -> MedicalDataset:
    """A dataset whose missing splits were cut from train, stratified by class, and which says so."""
    train, val, test = (source.splits.get(part) for part in ("train", "val", "test"))
    assert train is not None
    notes = list(source.notes)
    if test is None:
        train, test = cut(train, 0.2, "test", source.class_names)
        notes.append(f"no test split was given: {len(test)} images (a fifth, stratified) were cut from train")
    if val is None:
        train, val = cut(train, 0.1, "validation", source.class_names)
        notes.append(f"no validation split was given: {len(val)} images (a tenth, stratified) were cut from train")
    return MedicalDataset(
        name=source.name,
        train=train,
        val=val,
        test=test,
        class_names=source.class_names,
        task=source.task,
        licence=source.licence,
        source=source.source,
        side_matters=source.side_matters,
        notes=tuple(notes),
    )
