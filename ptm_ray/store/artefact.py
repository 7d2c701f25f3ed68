"""The synthetic set as others get it: Parquet, npz and recipe, loadable without this package and without pickle."""

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ptm_ray.core.whitening import Whitening, Zca
from ptm_ray.errors import StoreError
from ptm_ray.store import atomic
from ptm_ray.store.places import Place

FORMAT = 1
#: What a folder must hold to be a set.
RECIPE = "recipe.json"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SyntheticSet:
    """A distilled set.

    `images` (n, channels, height, width) float32, normalised: exactly what was learned. `pixels` (n, height, width,
    channels) uint8: the same for the eye. `labels` (n,) int64. `soft_labels` (n, classes) or None. `recipe`: all that
    is needed to train on it (normalisation, inner lr, augmentation, network, seeds, settings, versions). `zca`
    (1 + pixels, pixels): where the recipe's normalisation whitens whole images, their average and below it the matrix.
    """

    images: Floats
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    soft_labels: Floats | None
    recipe: dict[str, Any]
    zca: Floats | None = None

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Images of one's own, (n, height, width[, channels]) uint8, as networks trained on this set must see them.

        Returns (n, channels, height, width) float32.
        """
        stored = torch.tensor(pixels[..., None] if pixels.ndim == 3 else pixels)
        normalised: Floats = self.whitening.forward(stored).numpy()
        return normalised

    @property
    def whitening(self) -> Whitening:
        """From stored pixels to what `images` are."""
        known = self.recipe["normalisation"]
        zca = None if self.zca is None else Zca(torch.tensor(self.zca[0]), torch.tensor(self.zca[1:]))
        return Whitening(torch.tensor(known["mean"]), torch.tensor(known["std"]), zca)

    @property
    def class_names(self) -> list[str]:
        names: list[str] = self.recipe["dataset"]["class_names"]
        return names

    @property
    def probabilities(self) -> Floats:
        """Of the classes, for each image: its soft label, or all for its class. (n, classes)."""
        one_hot: Floats = np.eye(len(self.class_names), dtype=np.float32)[self.labels]
        return one_hot if self.soft_labels is None else self.soft_labels

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        """The pixels in MedMNIST's and Pillow's shape: no channel axis for grayscale."""
        return self.pixels[..., 0] if self.pixels.shape[3] == 1 else self.pixels

    def save(self, folder: Path) -> None:
        """Writes `synthetic.parquet`, `synthetic.npz`, `recipe.json`, and `zca.npy` where whole images are whitened."""
        with atomic.replacing(folder / "synthetic.parquet") as temporary:
            pq.write_table(self._table(), temporary, compression="zstd")
        labels = self.labels[:, None].astype(np.min_scalar_type(len(self.class_names) - 1))
        with atomic.replacing(folder / "synthetic.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                train_images=self.pictures,
                train_labels=labels,
                class_names=np.array(self.class_names),
            )
        if self.zca is not None:
            with atomic.replacing(folder / "zca.npy") as temporary, temporary.open("wb") as file:
                np.save(file, self.zca, allow_pickle=False)
        atomic.write_text(folder / RECIPE, json.dumps({"format": FORMAT, **self.recipe}, indent=2))

    @classmethod
    def load(cls, folder: str | Path | Place) -> Self:
        """A saved set, from a path or a URL. Raises `StoreError` where files are missing or damaged."""
        place = Place.of(folder)
        place.pull(RECIPE, "synthetic.parquet", "zca.npy")
        folder = place.local
        try:
            recipe = json.loads((folder / RECIPE).read_text())
            table = pq.read_table(folder / "synthetic.parquet")
            shape = tuple(recipe["shape"])
            images = np.array(table["pixels"].to_pylist(), dtype=np.float32).reshape(-1, *shape)
            png = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()]
            pixels = np.stack(png).reshape(len(images), shape[1], shape[2], shape[0])
            labels = np.array(table["label"].to_pylist(), dtype=np.int64)
            soft = np.array(table["soft_label"].to_pylist(), dtype=np.float32) if recipe["soft_labels"] else None
            zca = np.load(folder / "zca.npy", allow_pickle=False) if recipe["normalisation"]["zca"] else None
            if zca is not None and zca.shape != (1 + math.prod(shape), math.prod(shape)):
                raise ValueError(f"zca.npy has the shape {zca.shape}, not that of an average and a matrix")
        except FileNotFoundError as error:
            lost = Path(error.filename or "").name or error
            raise StoreError(f"{place} is no synthetic set: {lost} is missing") from None
        except (pa.ArrowInvalid, KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise StoreError(f"{place} is a damaged synthetic set ({type(error).__name__}: {error})") from error
        if (form := recipe.pop("format", FORMAT)) != FORMAT:
            raise StoreError(f"{place} has format {form!r}, this version reads {FORMAT}; update ptm-ray")
        return cls(images, pixels, labels, soft, recipe, zca)

    def _table(self) -> pa.Table:
        names = self.class_names
        cells = [{"bytes": _png(picture), "path": None} for picture in self.pictures]
        flat = self.images.reshape(len(self.images), -1)
        columns = {
            "image": pa.array(cells, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(self.labels, type=pa.int64()),
            "soft_label": pa.array(list(self.probabilities), type=pa.list_(pa.float32())),
            "pixels": pa.array(list(flat), type=pa.list_(pa.float32())),
        }
        floats = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
        features = {
            "image": {"_type": "Image"},
            "label": {"names": names, "_type": "ClassLabel"},
            "soft_label": floats,
            "pixels": floats,
        }
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        return pa.table(columns).replace_schema_metadata(about)


def place_of_set(where: str | Path) -> Place | None:
    """Where our set lies: there, or in the run that is there."""
    place = Place.of(where)
    for folder in (place, place / "set"):
        if folder.has(RECIPE):
            return folder
    return None


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
