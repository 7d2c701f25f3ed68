"""Any npz in MedMNIST's layout: {train,val,test}_images and _labels; val and test may be missing. Beside them
{train,val,test}_patients may say whose images they are."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptm_ray.data.dataset import Source, Split, make_split, numbered_classes, numbered_patients, task_of
from ptm_ray.errors import DataError, first_line


def read_npz(path: Path, **about: Any) -> Source:
    """Reads arrays only: a pickled object in the file is refused. `about` is what is known beside the arrays."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an npz file (or only a part of one); save the arrays by numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {part: _split(file, part, path) for part in ("train", "val", "test")}
            names = file["class_names"].tolist() if "class_names" in file.files else None
            patients = _patients(file, found, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        raise DataError(f"{path} can't be read as an npz file ({first_line(error)}); save it by numpy.savez") from error
    splits = {part: split for part, split in found.items() if split is not None}
    if "class_names" not in about:
        highest = max(int(split.labels.max()) for split in splits.values())
        images = sum(map(len, splits.values()))
        about["class_names"] = tuple(map(str, names)) if names else numbered_classes(highest, images, path.name)
    about = {"name": path.stem, **about}
    return Source(splits=splits, patients=patients, **{"task": task_of(len(about["class_names"])), **about})


def _patients(
    file: np.lib.npyio.NpzFile, found: dict[str, Split | None], path: Path
) -> dict[str, npt.NDArray[np.int64]]:
    told = {part: file[f"{part}_patients"].ravel() for part in found if f"{part}_patients" in file.files}
    for part, names in told.items():
        split = found[part]
        if split is None or len(names) != len(split):
            images = 0 if split is None else len(split)
            raise DataError(f"{path}: {part}_patients has {len(names)} entries for {images} images; give one for each")
    return numbered_patients({part: names.tolist() for part, names in told.items()}, str(path))


def _split(file: np.lib.npyio.NpzFile, part: str, path: Path) -> Split | None:
    keys = [f"{part}_images", f"{part}_labels"]
    present = [key for key in keys if key in file.files]
    if not present and part != "train":
        return None
    missing = [key for key in keys if key not in present]
    if missing:
        raise DataError(
            f"{path} lacks {' and '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}. "
            "Expected MedMNIST's layout: train_images, train_labels, and the same for val and test"
        )
    return make_split(file[keys[0]], file[keys[1]], f"{path.name}, {part}")
