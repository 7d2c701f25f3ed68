"""Cutting a missing split from train."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ptm_ray.core.seeds import Seeds
from ptm_ray.data.dataset import MedicalDataset, Source, Split
from ptm_ray.errors import DataError

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def cut(split: Split, share: float, stage: str, names: Sequence[str]) -> Mask:
    """Which images to cut away, (n,): `share` of every class, at least one image of it, at random but always the same.

    The seed is fixed rather than the run's, so that every run on a dataset sees the same validation images. Copies of
    an image stay together, unless their class has no other image. Raises `DataError` where a class has a single image.
    """
    draw = np.random.default_rng(Seeds(0).derive(stage))
    chosen = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label)
        if len(rows) < 2:
            name = _name(names, label)
            raise DataError(
                f"class {name!r} has one image left, too few to cut a {stage} split from; add images or that split"
            )
        order, ends = _copies_together(draw.permutation(rows), split)
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        if len(ends):
            count = ends[np.abs(ends - count).argmin()]
        chosen[order[:count]] = True
    _undo_copies_of_other_classes(chosen, split)
    return chosen


def cut_patients(split: Split, share: float, stage: str, names: Sequence[str], patients: Rows) -> Mask:
    """The same of whole patients, (n,) by number: of every class about `share`, and some of it on either side.

    Raises `DataError` where that can't be, as where all images of a class are one patient's.
    """
    # A second or so to import, for those alone who tell their patients.
    from sklearn.model_selection import StratifiedGroupKFold

    classes, counts = np.unique(split.labels, return_counts=True)
    folds = min(round(1 / share), len(np.unique(patients)), int(counts.max()))
    best, way_out = None, "give that split, or leave the patients out"
    for label in classes:
        if len(np.unique(patients[split.labels == label])) < 2:
            name = _name(names, label)
            raise DataError(f"class {name!r} is of one patient, too few to cut a {stage} split from; {way_out}")
    order = StratifiedGroupKFold(folds, shuffle=True, random_state=Seeds(0).derive(stage) % 2**32)
    with warnings.catch_warnings():
        # That a class has fewer images than there are folds; what comes of it is looked at here.
        warnings.simplefilter("ignore", UserWarning)
        parts = [rows for _, rows in order.split(split.labels, split.labels, patients)]
    for rows in parts:
        chosen = np.zeros(len(split), dtype=bool)
        chosen[rows] = True
        shares = np.array([chosen[split.labels == label].mean() for label in classes])
        error = float(np.abs(shares - share).max())
        if shares.min() > 0 and shares.max() < 1 and (best is None or error < best[0]):
            best = error, chosen
    if best is None:
        raise DataError(f"no {stage} split of whole patients was found that has every class; {way_out}")
    return best[1]


def _name(names: Sequence[str], label: int) -> str:
    """Of a class; labels are not checked yet."""
    return names[label] if 0 <= label < len(names) else str(label)


def _copies_together(order: Rows, split: Split) -> tuple[Rows, Rows]:
    """These rows with copies of an image beside the first of them, and how many may be cut without tearing any apart.

    Without copies the order is as it was, and any number may.
    """
    _, first, image = np.unique(split.prints[order], return_index=True, return_inverse=True)
    place = first[image]
    by_place = np.argsort(place, kind="stable")
    return order[by_place], np.flatnonzero(np.diff(place[by_place])) + 1


def _undo_copies_of_other_classes(chosen: Mask, split: Split) -> None:
    """Of an image that stands under two labels, both stay in the rest, where their class has others to cut."""
    torn = chosen & np.isin(split.prints, split.prints[~chosen])
    for label in np.unique(split.labels[torn]):
        own = chosen & (split.labels == label)
        if (own & ~torn).any():
            chosen[own & torn] = False


def complete(source: Source) -> MedicalDataset:
    """A dataset whose missing splits were cut from train, stratified by class, and which says so.

    Where patients are told, they are cut whole, and those that stand in several splits are counted.
    """
    splits, patients, notes = dict(source.splits), dict(source.patients), list(source.notes)
    for part, share, named, word in (("test", 0.2, "test", "a fifth"), ("val", 0.1, "validation", "a tenth")):
        if part in splits:
            continue
        train, whole = splits["train"], "train" in patients
        if whole:
            chosen = cut_patients(train, share, named, source.class_names, patients["train"])
            patients[part], patients["train"] = patients["train"][chosen], patients["train"][~chosen]
        else:
            chosen = cut(train, share, named, source.class_names)
        splits[part], splits["train"] = (Split(train.images[of], train.labels[of]) for of in (chosen, ~chosen))
        how = f"about {word}, stratified, whole patients" if whole else f"{word}, stratified"
        notes.append(f"no {named} split was given: {len(splits[part])} images ({how}) were cut from train")
    for part, other in (("val", "train"), ("test", "train"), ("test", "val")):
        both = len(np.intersect1d(patients.get(part, []), patients.get(other, [])))
        if both:
            notes.append(f"{both} patients of {part} are patients of {other} too: scores on it flatter")
    return MedicalDataset(
        name=source.name,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        class_names=source.class_names,
        task=source.task,
        licence=source.licence,
        source=source.source,
        side_matters=source.side_matters,
        notes=tuple(notes),
    )
