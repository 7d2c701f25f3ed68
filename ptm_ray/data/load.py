"""From what the user wrote (a name or a path) to a checked dataset."""

from pathlib import Path

from ptm_ray.data import folder, medmnist, table
from ptm_ray.data.dataset import MedicalDataset, Source, Split, check, check_labels
from ptm_ray.data.npz import read_npz
from ptm_ray.data.phantom import cellphantom
from ptm_ray.data.splits import complete
from ptm_ray.errors import DataError, did_you_mean, readable

#: The embedded dataset's name.
CELLPHANTOM = "cellphantom"


def load_dataset(data: str | Path, *, size: int | None = None, data_root: str | Path | None = None) -> MedicalDataset:
    """A dataset by name (`cellphantom`, any MedMNIST 2D flag such as bloodmnist, or bloodmnist_64 for another size) or
    path (npz, class folders, Parquet or Arrow table).

    `size` is the resolution in pixels: one of MedMNIST's (default 28), or what folders and tables are scaled to
    (default 32). `data_root` is searched for MedMNIST's files before its own folder, and what is downloaded goes there;
    and for a file or folder of the name given, the ending of an npz left out or not.

    Raises `DataError` for what can't be found, read or distilled, saying which and the way out.
    """
    if str(data) == CELLPHANTOM:
        dataset = cellphantom()
    else:
        dataset = complete(_source(str(data), size, Path(data_root) if data_root else None))
    if size is not None and dataset.resolution != size:
        raise DataError(f"{data} has {dataset.resolution} pixels a side and no other size, not {size}; leave size out")
    return check(dataset)


def is_known(data: str) -> bool:
    """Whether it is a dataset by name alone, wherever its file may be."""
    return data == CELLPHANTOM or medmnist.named(data) is not None


def load_training_images(path: Path, size: int | None = None) -> tuple[Split, tuple[str, ...]]:
    """The training images of a path and their class names, whole: nothing is cut away for other splits.

    Made for sets that others distilled.
    """
    source = _source(str(path), size, None)
    train = source.splits["train"]
    check_labels(train, source.class_names, f"{source.name}: train")
    return train, source.class_names


def _source(text: str, size: int | None, root: Path | None) -> Source:
    with readable(text, DataError):
        return _read(text, size, root)


def _read(text: str, size: int | None, root: Path | None) -> Source:
    path = Path(text).expanduser()
    if not path.exists() and root and path.suffix and (root / path).is_file():
        path = root / path
    if path.is_dir():
        return folder.read_folder(path, size or 32)
    if path.is_file():
        return _read_file(path, size)
    if path.suffix or "/" in text:
        raise DataError(f"no file or folder {text}; give an npz, a folder of class folders, a table, or a name")
    if (known := medmnist.named(text)) is not None:
        return medmnist.read_medmnist(known[0], known[1] or size or 28, root)
    if root and (root / f"{text}.npz").is_file():
        return _read_file(root / f"{text}.npz", size)
    if root and (root / text).is_dir():
        return folder.read_folder(root / text, size or 32)
    raise DataError(f"unknown dataset {text!r}; {did_you_mean(text, [CELLPHANTOM, *medmnist.flags()])}")


def _read_file(path: Path, size: int | None) -> Source:
    # What may not be read would be taken for no npz.
    path.open("rb").close()
    if path.suffix == ".npz":
        return read_npz(path, **_known(path))
    if path.suffix in table.ENDINGS:
        return table.read_table(path, size or 32)
    raise DataError(
        f"{path} ends in {path.suffix or 'nothing'}; expected .npz, {', '.join(sorted(table.ENDINGS))}, or a folder"
    )


def _known(path: Path) -> dict[str, object]:
    """What medmnist knows about a file that bears one of its names: class names, licence, side."""
    named = medmnist.named(path.stem)
    if named is None:
        return {}
    flag, _ = named
    about = medmnist.flags()[flag]
    if about["task"].startswith("multi-label"):
        return {}
    return {
        "class_names": tuple(about["label"][str(k)] for k in range(len(about["label"]))),
        "task": about["task"],
        "licence": about["license"],
        "source": f"MedMNIST ({about['url'].split('?')[0]})",
        "side_matters": flag in medmnist.SIDED,
    }
