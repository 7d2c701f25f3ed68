"""A Parquet or Arrow table with an image and a label column, and optional columns of splits and patients.

Images are encoded bytes (PNG, JPEG, TIFF), alone or as Hugging Face's {bytes, path}.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ptm_ray.data.dataset import (
    SPLITS,
    Source,
    as_labels,
    make_split,
    numbered_classes,
    numbered_patients,
    task_of,
)
from ptm_ray.data.folder import decode, note, square, stack
from ptm_ray.errors import DataError, first_line

ENDINGS = {".parquet", ".arrow", ".feather"}


def read_table(path: Path, size: int) -> Source:
    """Labels are whole numbers or names; images are cropped to their central square and scaled to `size` pixels."""
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_arrow(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as a table ({first_line(error)}); write it anew") from error
    missing = [column for column in ("image", "label") if column not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the column {' and '.join(missing)}; it has {', '.join(table.column_names)}. "
            "Expected image (encoded bytes) and label, and if you like split (train, val, test) and patient"
        )
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows; give one for every image")
    labels, names = _labels(table["label"].to_pylist(), path)
    names = _declared_names(table.schema, len(names)) or names
    squares = [_square(cell, size, f"{path}: the image in row {row}") for row, cell in enumerate(table["image"])]
    images = stack(squares, max(image.shape[2] for image in squares))
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
    patients = {}
    if "patient" in table.column_names:
        told = np.array([*table["patient"].to_pylist(), None], dtype=object)[:-1]
        patients = numbered_patients({part: told[part_of == part].tolist() for part in splits}, str(path))
    return Source(path.stem, splits, names, task_of(len(names)), notes=(note(size),), patients=patients)


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
    odd = [value for value in values if not isinstance(value, int | float)]
    if odd:
        raise DataError(f"{path}: label {odd[0]!r} among others; give names alone, or whole numbers 0, 1, 2, …")
    numbers = as_labels(np.array(values), str(path))
    return numbers, numbered_classes(int(numbers.max()), len(numbers), path.name)


def _declared_names(schema: pa.Schema, at_least: int) -> tuple[str, ...]:
    """Class names as Hugging Face datasets keeps them beside numbered labels; empty where it keeps none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = tuple(map(str, about["info"]["features"]["label"]["names"]))
    except (KeyError, TypeError, json.JSONDecodeError):
        return ()
    return names if len(names) >= at_least else ()


def _square(cell: pa.Scalar, size: int, where: str) -> np.ndarray:
    value = cell.as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError(f"{where} is no encoded bytes; store PNG, JPEG or TIFF bytes")
    return square(decode(io.BytesIO(data), where), size)
