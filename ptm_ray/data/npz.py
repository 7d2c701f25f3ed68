"""Any npz in MedMNIST's layout: {train,val,test}_images and _labels; val and test may be missing."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ptm_ray.data.dataset import Source, Split, make_split, task_of
from ptm_ray.errors import DataError


def read_npz(path: Path, **about: Any) -> Source:
    """Reads arrays only: a pickled object in the file is refused. `about` is what is known beside the arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is not an npz archive (it holds one array); save it by numpy.savez")
            found = {part: _split(file, part, path) for part in ("train", "val", "test")}
            names = file["class_names"].tolist() if "class_names" in file.files else None
    except (zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
        raise DataError(f"{path} can't be read as an npz file ({error}); save it by numpy.savez") from error
    splits = {part: split for part, split in found.items() if split is not None}
    highest = max(int(split.labels.max()) for split in splits.values())
    about = {"name": path.stem, "class_names": tuple(map(str, names or range(highest + 1))), **about}
    return Source(splits=splits, **{"task": task_of(len(about["class_names"])), **about})


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
