"""A set as other tools take it: class folders of pictures, or a dataset for the Hugging Face hub."""

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ptm_ray.errors import StoreError
from ptm_ray.store.artefact import RECIPE, SyntheticSet
from ptm_ray.store.places import Place

Form = Literal["pictures", "hub"]
#: What MedMNIST's licences are called on the hub; all others are "other" there.
LICENCES = {"CC BY 4.0": "cc-by-4.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}


def export(source: Place, out: Path, form: Form) -> SyntheticSet:
    """Writes the set at `source` into the folder `out`, which is there whole or not at all, and returns the set.

    pictures: `train/CLASS/NUMBER.png` and `labels.csv`, with card and recipe beside them. hub: the set itself with its
    card as the README that the hub reads. Raises `StoreError` where `out` holds something or can't be written, or where
    there is no set.
    """
    if not Place(out).is_empty():
        raise StoreError(f"{out} is not empty; choose another folder, or remove it")
    made = SyntheticSet.load(source)
    source.pull("card.md", "grid.png", "synthetic.npz")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as scratch:
            whole = Path(scratch) / "whole"
            {"pictures": _pictures, "hub": _hub}[form](made, source.local, whole)
            # Takes the place of an empty folder too.
            whole.replace(out)
    except OSError as error:
        raise StoreError(f"{out} can't be written ({error.strerror or error}); choose another folder") from error
    return made


def class_folders(names: Sequence[str]) -> list[str]:
    """A folder's name for each class.

    Readers number classes by their folders in alphabetical order: where that is not the labels', the label goes first.
    """
    plain = [re.sub(r"[^\w.-]+", "_", name).strip("._") or "class" for name in names]
    if plain == sorted(set(plain)):
        return plain
    digits = len(str(len(names) - 1))
    return [f"{label:0{digits}}_{name}" for label, name in enumerate(plain)]


def _pictures(made: SyntheticSet, source: Path, whole: Path) -> None:
    folders = class_folders(made.class_names)
    soft = [[]] * len(made.labels) if made.soft_labels is None else made.soft_labels.tolist()
    rows = []
    for number, (picture, label) in enumerate(zip(made.pictures, made.labels, strict=True)):
        path = Path("train") / folders[label] / f"{number:04}.png"
        (whole / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(whole / path)
        rows.append([path.as_posix(), int(label), made.class_names[label], *soft[number]])
    with (whole / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        soft_names = [] if made.soft_labels is None else [f"soft {name}" for name in made.class_names]
        writer.writerows([["file", "label", "class", *soft_names], *rows])
    _copy(source, whole, RECIPE, "card.md")


def _hub(made: SyntheticSet, source: Path, whole: Path) -> None:
    whole.mkdir()
    _copy(source, whole, RECIPE, "synthetic.parquet", "synthetic.npz", "zca.npy", "grid.png")
    card = source / "card.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {made.recipe['dataset']['name']}, distilled\n"
    (whole / "README.md").write_text(f"{_front_matter(made)}\n{text}", encoding="utf-8")


def _front_matter(made: SyntheticSet) -> str:
    """What the hub reads at the top of a README: YAML, whose values JSON may be."""
    data = made.recipe["dataset"]
    licence = data.get("licence", "not stated")
    known = {"license": LICENCES[licence]} if licence in LICENCES else {"license": "other", "license_name": licence}
    about: dict[str, Any] = {
        "pretty_name": f"{data['name']}, distilled",
        **known,
        "task_categories": ["image-classification"],
        "tags": ["medical", "dataset-distillation", "synthetic"],
        "size_categories": ["n<1K" if len(made.labels) < 1000 else "1K<n<10K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "synthetic.parquet"}]}],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in about.items()), "---", ""])


def _copy(source: Path, target: Path, *names: str) -> None:
    """Those that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
