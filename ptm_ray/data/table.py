"""A Parquet or Arrow table with an image and a label column, and an optional split column.

Images are encoded bytes (PNG, JPEG, TIFF), alone or as Hugging Face's {bytes, path}.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from ptm_ray.data.dataset import Source, make_split, task_of
from ptm_ray.data.folder import square
from ptm_ray.errors import DataError

ENDINGS = {".parquet", ".arrow", ".feather"}
SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


def read_table(path: Path, size: int) -> Source:
    """Labels are whole numbers or names; images are cropped to their central square and scaled to `size` pixels."""
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_arrow(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} can't be read as a {path.suffix[1:]} table ({error})") from error
    missing = [column for column in ("image", "label") if column not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the column {' and '.join(missing)}; it has {', '.join(table.column_names)}. "
            "Expected image (encoded bytes) and label, and if you like split (train, val, test)"
        )
    labels, names = _labels(table["label"].to_pylist(), path)
    pictures = [_decode(cell, row, path) for row, cell in enumerate(table["image"].to_pylist())]
    grey = all(picture.mode in ("1", "L", "LA", "I", "F", "I;16") for picture in pictures)
    images = np.stack([square(picture, size, grey) for picture in pictures])
    wanted = table["split"].to_pylist() if "split" in table.column_names else ["train"] * len(labels)
    unknown = sorted({str(part) for part in wanted} - SPLITS.keys())
    if unknown:
        raise DataError(f"{path}: split {unknown[0]!r} is unknown; use train, val and test")
    part_of = np.array([SPLITS[part] for part in wanted])
    splits = {
        part: make_split(images[part_of == part], labels[part_of == part], f"{path.name}, {part}")
        for part in ("train", "val", "test")
        if part == "train" or (part_of == part).any()
    }
    note = f"images were cropped to their central square and scaled to {size}×{size} pixels"
    return Source(path.stem, splits, names, task_of(len(names)), notes=(note,))


def _read_arrow(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(path).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(path).read_all()


def _labels(values: list[Any], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if any(value is None for value in values):
        raise DataError(f"{path}: row {values.index(None)} has no label; every image needs one")
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        return np.array([names.index(value) for value in values]), names
    if any(isinstance(value, list) for value in values):
        raise DataError(f"{path}: labels are lists: several an image (multi-label) are not supported yet")
    numbers = np.array(values)
    highest = int(numbers.max()) if len(numbers) else 0
    return numbers, tuple(str(k) for k in range(highest + 1))


def _decode(cell: Any, row: int, path: Path) -> Image.Image:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise DataError(f"{path}: the image in row {row} is no encoded bytes; store PNG, JPEG or TIFF bytes")
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: the image in row {row} can't be decoded ({error})") from error
    return picture
