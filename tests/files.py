"""Small files of images, as users have them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PARTS = ("train", "val", "test")


def arrays(n=12, side=16, classes=3, colour=False):
    """MedMNIST's layout: random images, labels 0, 1, 2, 0, 1, 2, … of shape (n, 1)."""
    draw = np.random.default_rng(0)
    shape = (n, side, side, 3) if colour else (n, side, side)
    images = {f"{part}_images": draw.integers(0, 256, shape, dtype=np.uint8) for part in PARTS}
    labels = {f"{part}_labels": (np.arange(n, dtype=np.uint8) % classes)[:, None] for part in PARTS}
    return {**images, **labels}


def write_npz(path, without=(), **changes):
    """`arrays`, some of them changed or left out, as a file."""
    held = {**arrays(), **changes}
    np.savez(path, **{key: value for key, value in held.items() if key not in without})
    return path


def write_dataset(path, dataset):
    """A whole dataset as a file."""
    parts = {part: getattr(dataset, part) for part in PARTS}
    held = {f"{part}_{kind}": getattr(split, kind) for part, split in parts.items() for kind in ("images", "labels")}
    np.savez(path, **held, class_names=np.array(dataset.class_names))
    return path


def picture(side=16, colour=True, seed=0, height=None):
    """(height, side[, 3]) uint8"""
    shape = (height or side, side, 3) if colour else (height or side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_classes(folder, counts, ending="png", **options):
    """A class folder of `count` pictures for every name."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(seed=index, **options)).save(folder / name / f"{index}.{ending}")
    return folder


def encoded(pixels, kind="PNG"):
    """The bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_parquet(path, **columns):
    """A table as users of Hugging Face's datasets have it."""
    pq.write_table(pa.table(columns), path)
    return path
