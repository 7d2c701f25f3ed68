"""A folder of class folders of PNG, JPEG or TIFF; optionally train, val and test folders above them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ptm_ray.data.dataset import Source, Split, make_split, task_of
from ptm_ray.errors import DataError

ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


def read_folder(root: Path, size: int) -> Source:
    """Images are cropped to their central square and scaled to `size` pixels. Class names are the folders' names.

    A set whose images are all grayscale has one channel. Raises `DataError` where there is nothing to read.
    """
    parts = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if parts and "train" not in parts:
        raise DataError(f"{root} has {' and '.join(parts)} but no train folder; add it, or keep class folders alone")
    top = parts.get("train", root)
    names = tuple(
        sorted(folder.name for folder in top.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    )
    if not names:
        raise DataError(f"{top} holds no class folders; expected one folder of images per class")
    files = {part: _files(folder, names) for part, folder in (parts or {"train": root}).items()}
    grey = all(_is_grey(path) for listing in files.values() for path, _ in listing)
    splits = {part: _split(listing, size, grey, f"{root.name}, {part}") for part, listing in files.items()}
    note = f"images were cropped to their central square and scaled to {size}×{size} pixels"
    return Source(root.name, splits, names, task_of(len(names)), notes=(note,))


def _files(top: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    unknown = sorted(f.name for f in top.iterdir() if f.is_dir() and f.name not in names and not f.name.startswith("."))
    if unknown:
        raise DataError(f"{top} has class folder {unknown[0]!r}, which train lacks")
    listing = []
    for label, name in enumerate(names):
        found = sorted(p for p in (top / name).rglob("*") if p.suffix.lower() in ENDINGS)
        if not found and top.name not in ("val", "test"):
            raise DataError(f"class {name!r} has no image in {top / name}; expected PNG, JPEG or TIFF files")
        listing += [(path, label) for path in found]
    return listing


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} can't be read as an image ({error}); mend or remove it") from error
    return image


def _is_grey(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "LA", "I", "F", "I;16", "I;16B")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} can't be read as an image ({error}); mend or remove it") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit and float grayscale, scaled by the image's own range, as there is no other to go by."""
    if image.mode not in ("I", "F", "I;16", "I;16B"):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low or 1.0) * 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def square(image: Image.Image, size: int, grey: bool) -> np.ndarray:
    """The central square at `size` pixels, (size, size, channels) uint8."""
    image = _eight_bit(image).convert("L" if grey else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, -1)


def _split(listing: list[tuple[Path, int]], size: int, grey: bool, where: str) -> Split:
    images = [square(_open(path), size, grey) for path, _ in listing]
    if not images:
        raise DataError(f"{where}: no images")
    return make_split(np.stack(images), np.array([label for _, label in listing]), where)
