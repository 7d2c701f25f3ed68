"""A folder of class folders of PNG, JPEG or TIFF; optionally train, val and test folders above them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ptm_ray.data.dataset import Source, make_split, task_of
from ptm_ray.errors import DataError, first_line

ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
#: Pillow's modes without colour, at any depth.
GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B")


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
    files = {part: _files(folder, names, part) for part, folder in (parts or {"train": root}).items()}
    squares = {part: [square(decode(path, str(path)), size) for path, _ in listing] for part, listing in files.items()}
    channels = max(image.shape[2] for images in squares.values() for image in images)
    splits = {}
    for part, listing in files.items():
        if not listing:
            raise DataError(f"{parts[part]} has no image; expected PNG, JPEG or TIFF files in its class folders")
        labels = np.array([label for _, label in listing])
        splits[part] = make_split(stack(squares[part], channels), labels, f"{root.name}, {part}")
    return Source(root.name, splits, names, task_of(len(names)), notes=(note(size),))


def note(size: int) -> str:
    """What happens to every picture, for the user and the card."""
    return (
        f"images were cropped to their central square and scaled to {size}×{size} pixels; "
        "grayscale of more than 8 bits was scaled by each image's own range"
    )


def _files(top: Path, names: Sequence[str], part: str) -> list[tuple[Path, int]]:
    unknown = sorted(f.name for f in top.iterdir() if f.is_dir() and f.name not in names and not f.name.startswith("."))
    if unknown:
        raise DataError(f"{top} has class folder {unknown[0]!r}, which train lacks")
    listing = []
    for label, name in enumerate(names):
        found = sorted(p for p in (top / name).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        if not found and part == "train":
            raise DataError(f"class {name!r} has no image in {top / name}; expected PNG, JPEG or TIFF files")
        listing += [(path, label) for path in found]
    return listing


def decode(source: Path | io.BytesIO, where: str) -> Image.Image:
    """A PNG, JPEG or TIFF as a picture. Raises `DataError` for what is none and for pixels that are not finite."""
    try:
        with Image.open(source) as image:
            image.load()
    except UnidentifiedImageError as error:
        raise DataError(f"{where} is no PNG, JPEG or TIFF image; mend or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} can't be read as an image ({first_line(error)}); mend or remove it") from error
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise DataError(f"{where} has pixels that are NaN or infinite; mend or remove it")
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit and float grayscale, scaled by the image's own range, as there is no other to go by."""
    if image.mode not in ("I", "F", "I;16", "I;16B"):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low or 1.0) * 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def square(image: Image.Image, size: int) -> np.ndarray:
    """The central square at `size` pixels, (size, size, channels) uint8: one channel where there is no colour."""
    image = _eight_bit(image).convert("L" if image.mode in GREY else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, -1)


def stack(squares: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """(n, size, size, channels): beside coloured images, grayscale ones get three equal channels."""
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in squares])
