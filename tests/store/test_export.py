"""A set as other tools take it: read back by those tools."""

import csv

import datasets
import numpy as np
import pytest
import yaml

from ptm_ray.data.load import load_training_images
from ptm_ray.errors import StoreError
from ptm_ray.store.artefact import SyntheticSet
from ptm_ray.store.export import class_folders, export
from ptm_ray.store.places import Place
from tests.store.test_artefact import NAMES, made


@pytest.fixture
def saved(tmp_path):
    """Saves a set with a card, in the folder `set`."""

    def save(names=NAMES, **kind):
        made_set = made(**kind)
        about = {"name": "cells", "class_names": names, "licence": "CC BY 4.0"}
        made_set.recipe["dataset"] = about
        made_set.save(tmp_path / "set")
        (tmp_path / "set" / "card.md").write_text("# cells, distilled\n")
        return made_set

    return save


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [NAMES, ["pneumonia", "normal", "a / b"]])
def test_pictures_are_read_back_with_the_same_labels(tmp_path, saved, channels, names):
    original = saved(names, channels=channels)
    export(Place(tmp_path / "set"), tmp_path / "out", "pictures")
    split, folders = load_training_images(tmp_path / "out", 12)
    np.testing.assert_array_equal(split.images, original.pixels)
    np.testing.assert_array_equal(split.labels, original.labels)
    assert [folder.split("_", 1)[-1] for folder in folders] == [name.replace(" / ", "_") for name in names]
    assert {"train", "labels.csv", "card.md", "recipe.json"} == {path.name for path in (tmp_path / "out").iterdir()}


def test_the_table_of_labels_holds_learned_ones(tmp_path, saved):
    original = saved(soft=True)
    export(Place(tmp_path / "set"), tmp_path / "out", "pictures")
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [NAMES[label] for label in original.labels]
    found = [[float(row[f"soft {name}"]) for name in NAMES] for row in rows]
    np.testing.assert_array_equal(np.float32(found), original.soft_labels)
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)


def test_hugging_face_loads_the_folder_for_the_hub_and_so_do_we(tmp_path, saved):
    original = saved(soft=True, zca=np.eye(433, 432, dtype=np.float32))
    out = tmp_path / "out"
    export(Place(tmp_path / "set"), out, "hub")
    table = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == NAMES
    np.testing.assert_array_equal(np.stack([np.asarray(row["image"]) for row in table]), original.pixels)
    again = SyntheticSet.load(out)
    np.testing.assert_array_equal(again.images, original.images)
    np.testing.assert_array_equal(again.zca, original.zca)
    _, front, card = (out / "README.md").read_text().split("---\n")
    about = yaml.safe_load(front)
    assert about["license"] == "cc-by-4.0"
    assert about["task_categories"] == ["image-classification"]
    assert card.strip() == "# cells, distilled"


def test_a_licence_that_the_hub_has_no_name_for_is_told_as_it_is(tmp_path, saved):
    original = saved()
    original.recipe["dataset"]["licence"] = "for research: on request"
    original.save(tmp_path / "set")
    export(Place(tmp_path / "set"), tmp_path / "out", "hub")
    about = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert (about["license"], about["license_name"]) == ("other", "for research: on request")


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path, saved):
    saved()
    (tmp_path / "out").mkdir()
    export(Place(tmp_path / "set"), tmp_path / "out", "pictures")
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=r"out is not empty; choose another folder, or remove it"):
        export(Place(tmp_path / "set"), tmp_path / "out", "hub")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"can't be written \(.*\); choose another folder"):
        export(Place(tmp_path / "set"), tmp_path / "file" / "out", "hub")
    assert sorted(path for path in tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


def test_class_folders_are_in_the_order_of_labels():
    assert class_folders(["a", "b", "c"]) == ["a", "b", "c"]
    assert class_folders(["b", "a"]) == ["0_b", "1_a"]
    # Names that become one.
    assert class_folders(["a/b", "a b", "..", "é"]) == ["0_a_b", "1_a_b", "2_class", "3_é"]
    many = class_folders([f"{label}" for label in range(11)])
    assert many == sorted(many)
    assert many[10] == "10_10"
