"""MedMNIST's 2D sets: looked for on disk, else downloaded by the medmnist package with its checksum."""

import functools
import importlib.util
import logging
import runpy
from pathlib import Path
from typing import Any

from ptm_ray.data.dataset import Source
from ptm_ray.data.npz import read_npz
from ptm_ray.data.torchvision_guard import guard
from ptm_ray.errors import DataError, first_line

SIZES = (28, 64, 128, 224)

#: Sets whose images have a left and a right that mean something.
SIDED = {"pneumoniamnist", "chestmnist", "retinamnist", "breastmnist", "organamnist", "organcmnist", "organsmnist"}

log = logging.getLogger(__name__)


def flags() -> dict[str, Any]:
    """The 2D flags and what medmnist says of each."""
    return {flag: about for flag, about in _info()["INFO"].items() if not flag.endswith("3d")}


def named(text: str) -> tuple[str, int | None] | None:
    """Flag and, where it is said, size of what bears one of MedMNIST's names: bloodmnist, or bloodmnist_64 as its files
    at other sizes than 28 are called. None for all else.
    """
    flag, _, size = text.partition("_")
    if flag not in flags() or size not in ("", *map(str, SIZES)):
        return None
    return flag, int(size) if size else None


def folders(data_root: Path | None) -> list[Path]:
    """Where files are looked for, in order."""
    known = _info()["DEFAULT_ROOT"]
    own = Path(known) if known else Path.home() / ".medmnist"
    return [*([data_root] if data_root else []), own]


@functools.cache
def _info() -> dict[str, Any]:
    """What medmnist's list of sets defines, from its file alone: the package imports scikit-learn, a second or so."""
    package = importlib.util.find_spec("medmnist")
    assert package is not None
    assert package.origin is not None
    return runpy.run_path(str(Path(package.origin).with_name("info.py")))


def read_medmnist(flag: str, size: int, data_root: Path | None) -> Source:
    """The set of that flag at 28, 64, 128 or 224 pixels.

    Raises `DataError` for another size, a multi-label flag, and where it is neither on disk nor downloadable.
    """
    about = flags()[flag]
    if size not in SIZES:
        raise DataError(f"{flag} has no size {size}; MedMNIST offers {', '.join(map(str, SIZES))}")
    if about["task"].startswith("multi-label"):
        raise DataError(f"{flag} has several labels an image (multi-label), which is not yet supported")
    name = flag if size == 28 else f"{flag}_{size}"
    places = [folder / f"{name}.npz" for folder in folders(data_root)]
    path = next((place for place in places if place.is_file()), None) or _download(flag, size, places)
    names = tuple(about["label"][str(k)] for k in range(len(about["label"])))
    return read_npz(
        path,
        name=name,
        class_names=names,
        task=about["task"],
        licence=about["license"],
        source=f"MedMNIST ({about['url'].split('?')[0]})",
        side_matters=flag in SIDED,
    )


def _download(flag: str, size: int, places: list[Path]) -> Path:
    import medmnist

    target = places[0]
    log.info("downloading %s at %s pixels into %s", flag, size, target.parent)
    guard()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        getattr(medmnist, flags()[flag]["python_class"])(
            split="train", download=True, root=str(target.parent), size=size
        )
    except Exception as error:  # whatever the downloader met, the way out is the same
        looked = " and ".join(str(place.parent) for place in places)
        # medmnist replaces what went wrong by a page of advice.
        reason = first_line(error.__context__ or error)
        raise DataError(
            f"{target.name} is not in {looked}, and downloading it failed ({reason}); "
            "fetch it by hand and pass its folder as --data-root"
        ) from error
    return target
