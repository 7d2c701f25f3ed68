"""A folder of class folders of PNG, JPEG or TIFF; optionally train, val and test folders above them."""

import io
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ptm_ray.data.dataset import SPLITS, Source, make_split, task_of
from ptm_ray.errors import DataError, first_line

ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
#: Pillow's modes without colour, and those of them that hold more than eight bits.
GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B")
DEEP = ("I", "F", "I;16", "I;16B")

#: What Pillow raises for files that are damaged in one way or another.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


def read_folder(root: Path, size: int) -> Source:
    """Images are cropped to their central square and scaled to `size` pixels. Class names are the folders' names.

    A set whose images are all grayscale has one channel. Raises `DataError` where there is nothing to read.
    """
    parts = _parts(root)
    names = tuple(folder.name for folder in _folders(parts["train"]))
    if not names:
        raise DataError(f"{parts['train']} holds no class folders; expected one folder of images per class")
    files = {part: _files(folder, names, part) for part, folder in parts.items()}
    pictures = {part: [one for one in listing if one[0].suffix.lower() in ENDINGS] for part, listing in files.items()}
    squares = {
        part: [square(decode(path, str(path)), size) for path, _ in listing] for part, listing in pictures.items()
    }
    channels = max(image.shape[2] for images in squares.values() for image in images)
    splits = {}
    for part, listing in pictures.items():
        labels = np.array([label for _, label in listing])
        splits[part] = make_split(stack(squares[part], channels), labels, f"{root.name}, {part}")
    passed_over = sum(map(len, files.values())) - sum(map(len, pictures.values()))
    others = [f"files passed over, as they are no PNG, JPEG or TIFF by their ending: {passed_over}"]
    return Source(root.name, splits, names, task_of(len(names)), notes=(note(size), *(others if passed_over else [])))


def note(size: int) -> str:
    """What happens to every picture, for the user and the card."""
    return (
        f"images were turned upright as their EXIF says, laid on black where they are transparent, cropped to their "
        f"central square and scaled to {size}×{size} pixels; grayscale of more than 8 bits was scaled by each image's "
        "own range"
    )


def _folders(top: Path) -> list[Path]:
    """By name; hidden ones are of some program, and no classes."""
    return sorted(folder for folder in top.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _parts(root: Path) -> dict[str, Path]:
    """The folder of each split: `root` itself where it holds class folders alone."""
    there = _folders(root)
    called = {folder.name: SPLITS.get(folder.name.lower()) for folder in there}
    if "train" not in called.values():
        lone = [name for name, part in called.items() if part]
        # A class may be called valid, or training; hardly all of them.
        if lone and (len(lone) == len(called) or {"val", "test"} & called.keys()):
            raise DataError(f"{root} has {' and '.join(lone)} but no train folder; add it, or keep class folders alone")
        return {"train": root}
    parts: dict[str, Path] = {}
    for folder in there:
        part = called[folder.name]
        if part is None:
            raise DataError(f"{root} has {folder.name!r} beside its train folder; call it val or test, or move it away")
        if part in parts:
            raise DataError(f"{root} has both {parts[part].name} and {folder.name}, which are one split; keep one")
        parts[part] = folder
    return parts


def _files(top: Path, names: Sequence[str], part: str) -> list[tuple[Path, int]]:
    """All files within the class folders but hidden ones, with their labels."""
    unknown = [folder.name for folder in _folders(top) if folder.name not in names]
    if unknown:
        raise DataError(f"{top} has class folder {unknown[0]!r}, which train lacks")
    listing = []
    for label, name in enumerate(names):
        found = sorted(path for path in _below(top / name) if path.is_file() and not _hidden(path, top))
        if part == "train" and not any(path.suffix.lower() in ENDINGS for path in found):
            raise DataError(f"class {name!r} has no image in {top / name}; expected PNG, JPEG or TIFF files")
        listing += [(path, label) for path in found]
    if not any(path.suffix.lower() in ENDINGS for path, _ in listing):
        raise DataError(f"{top} has no image; expected PNG, JPEG or TIFF files in its class folders")
    return listing


def _below(folder: Path) -> Iterator[Path]:
    """All files, hidden folders left out; `rglob` would leave out those that may not be read, without a word."""

    def stop(error: OSError) -> None:
        raise error

    for above, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(above, name) for name in names)


def _hidden(path: Path, top: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(top).parts)


def decode(source: Path | io.BytesIO, where: str) -> Image.Image:
    """A PNG, JPEG or TIFF as a picture of mode L or RGB, upright, and on black where it is transparent.

    Raises `DataError` for what is none, for several pages or frames, for colours of 16 bits and for pixels that are not
    finite.
    """
    try:
        with Image.open(source) as image:
            _check_whole(image, where)
            image.load()
            # TIFF's WhiteIsZero, which Pillow turns about for eight bits and leaves as it is for more.
            negative = image.mode in DEEP and getattr(image, "tag_v2", {}).get(262) == 0
            plain = _plain(ImageOps.exif_transpose(image), where)
            return ImageOps.invert(plain) if negative else plain
    except UnidentifiedImageError as error:
        raise DataError(f"{where} is no PNG, JPEG or TIFF image; mend or remove it") from error
    except UNREADABLE as error:
        raise DataError(f"{where} can't be read as an image ({first_line(error)}); mend or remove it") from error


def _check_whole(image: Image.Image, where: str) -> None:
    """Refuses what Pillow would leave out without a word: all pages but the first, and the low half of 16 bits."""
    pages = getattr(image, "n_frames", 1)
    # Phones put a preview behind a photograph, which makes it an MPO; the first is what was taken.
    if pages > 1 and image.format != "MPO":
        raise DataError(f"{where} holds {pages} pages or frames; save the one that is meant as a file of its own")
    # Pillow's words for how pixels lie in a PNG, and TIFF's tag BitsPerSample.
    layouts, bits = [str(tile[3]) for tile in getattr(image, "tile", ())], getattr(image, "tag_v2", {}).get(258, (8,))
    deep = max(bits) > 8 or any(";16" in layout for layout in layouts)
    if deep and image.mode not in DEEP:
        raise DataError(f"{where} has colours or transparency of 16 bits, which are not supported; save it with 8 bits")


def _plain(image: Image.Image, where: str) -> Image.Image:
    if image.mode in DEEP:
        return _eight_bit(image, where)
    grey = image.mode in GREY
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image.convert("L" if grey else "RGB")


def _eight_bit(image: Image.Image, where: str) -> Image.Image:
    """16-bit and float grayscale, scaled by the image's own range, as there is no other to go by."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{where} has pixels that are NaN or infinite; mend or remove it")
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low or 1.0) * 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def square(image: Image.Image, size: int) -> np.ndarray:
    """The central square at `size` pixels, (size, size, channels) uint8: one channel where there is no colour."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, -1)


def stack(squares: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """(n, size, size, channels): beside coloured images, grayscale ones get three equal channels."""
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in squares])
