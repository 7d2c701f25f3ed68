"""Folders and tables of encoded pictures: cropped to their middle, scaled, grey only where all are grey."""

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image

from ptm_ray.data import load_dataset
from ptm_ray.errors import DataError
from tests.files import encoded, picture, write_classes, write_parquet

ROWS = [picture(colour=True, seed=k) for k in range(12)]


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_pictures_of_the_asked_size_keep_their_pixels(tmp_path, ending):
    write_classes(tmp_path / "cells", {"red": 10, "white": 10}, ending, side=32)
    dataset = load_dataset(tmp_path / "cells")
    assert (dataset.name, dataset.class_names, dataset.resolution) == ("cells", ("red", "white"), 32)
    with Image.open(tmp_path / "cells" / "red" / f"0.{ending}") as image:
        first = np.asarray(image)
    everything = np.concatenate([dataset.train.images, dataset.val.images, dataset.test.images])
    assert (everything == first).all((1, 2, 3)).any()


def test_train_val_and_test_folders_are_the_splits(tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        write_classes(tmp_path / part, {"a": count, "b": count})
    dataset = load_dataset(tmp_path)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [8, 4, 6]
    assert dataset.val.labels.tolist() == [0, 0, 1, 1]
    assert len(dataset.notes) == 1


def test_the_middle_is_cropped_and_scaled_and_the_notes_say_so(tmp_path):
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.fromarray(wide).save(tmp_path / name / f"{index}.png")
    dataset = load_dataset(tmp_path, size=8)
    assert dataset.train.images.shape[1:] == (8, 8, 1)
    assert (dataset.train.images == 200).all()
    assert "cropped to their central square and scaled to 8×8 pixels" in dataset.notes[0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_is_scaled_by_its_own_range(tmp_path, order):
    deep = np.linspace(1000, 9000, 64).reshape(8, 8).astype(f"{order}u2")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            tifffile.imwrite(tmp_path / name / f"{index}.tif", deep, byteorder=order)
    dataset = load_dataset(tmp_path, size=8)
    expected = np.rint((deep.astype(float) - 1000) / 8000 * 255)
    assert dataset.channels == 1
    assert np.array_equal(dataset.train.images[0, ..., 0], expected)
    assert "own range" in dataset.notes[0]


def test_one_coloured_picture_makes_the_set_coloured(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 4}, colour=False, side=8)
    assert load_dataset(tmp_path, size=8).channels == 1
    Image.fromarray(picture(8)).save(tmp_path / "b" / "coloured.png")
    dataset = load_dataset(tmp_path, size=8)
    assert dataset.channels == 3
    grey = dataset.train.images[dataset.train.labels == 0]
    assert (grey == grey[..., :1]).all()


def broken(kind):
    whole = encoded(picture(64))
    middle = len(whole) // 2
    return {
        "text": b"no image",
        "cut short": whole[:middle],
        "damaged": whole[:middle] + bytes(40) + whole[middle + 40 :],
    }[kind]


@pytest.mark.parametrize("kind", ["text", "cut short", "damaged"])
def test_a_broken_picture_is_named(tmp_path, kind):
    write_classes(tmp_path / "folder", {"a": 4, "b": 4})
    (tmp_path / "folder" / "b" / "3.png").write_bytes(broken(kind))
    with pytest.raises(DataError, match=r"b/3\.png .*mend or remove it"):
        load_dataset(tmp_path / "folder")
    images = [encoded(ROWS[0]), broken(kind)]
    with pytest.raises(DataError, match=r"t\.parquet: the image in row 1 .*mend or remove it"):
        load_dataset(write_parquet(tmp_path / "t.parquet", image=images, label=[0, 1]))


def test_a_float_tiff_with_a_hole_is_refused(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 4})
    tifffile.imwrite(tmp_path / "a" / "hole.tif", np.full((8, 8), np.nan, np.float32))
    with pytest.raises(DataError, match=r"hole\.tif has pixels that are NaN"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["plain", "val", "test"])
def test_a_class_folder_without_pictures_is_refused(tmp_path, name):
    write_classes(tmp_path / name, {"a": 0, "b": 0})
    with pytest.raises(DataError, match="class 'a' has no image"):
        load_dataset(tmp_path / name)


def cells(as_struct):
    blobs = [encoded(row) for row in ROWS]
    return [{"bytes": blob, "path": f"{k}.png"} for k, blob in enumerate(blobs)] if as_struct else blobs


def write_table(path, columns):
    table = pa.table(columns)
    if path.suffix == ".parquet":
        return write_parquet(path, **columns)
    new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("as_struct", [False, True])
def test_a_table_of_images_labels_and_splits_is_read(tmp_path, ending, as_struct):
    split = ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    columns = {"image": cells(as_struct), "label": [0, 1] * 6, "split": split}
    dataset = load_dataset(write_table(tmp_path / f"table.{ending}", columns), size=16)
    for part, rows in (("train", ROWS[:4]), ("val", ROWS[4:8]), ("test", ROWS[8:])):
        assert np.array_equal(getattr(dataset, part).images, rows)
    assert dataset.class_names == ("0", "1")


def test_labels_of_a_table_may_be_names(tmp_path):
    label = ["villous", "healthy", "tubular"] * 4
    dataset = load_dataset(write_parquet(tmp_path / "t.parquet", image=cells(False), label=label), size=16)
    assert dataset.class_names == ("healthy", "tubular", "villous")
    split = dataset.test
    for image, number in zip(split.images, split.labels, strict=True):
        row = next(k for k, pixels in enumerate(ROWS) if np.array_equal(pixels, image))
        assert dataset.class_names[number] == label[row]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "has no rows"),
        ({"image": cells(False)[:2], "kind": [0, 1]}, "lacks the column label; it has image, kind"),
        ({"image": cells(False)[:2], "label": [0, None]}, "row 1 has no label"),
        ({"image": cells(False)[:2], "label": [0.0, float("nan")]}, "label nan is not a whole number"),
        ({"image": cells(False)[:2], "label": [0, 70_000_000]}, "label 70000000 among 2 images"),
        ({"image": cells(False)[:2], "label": [[0, 1], [1]]}, "multi-label"),
        ({"image": cells(False)[:2], "label": [{"a": 1}] * 2}, "give names alone, or whole numbers"),
        ({"image": [[1, 2], [3, 4]], "label": [0, 1]}, "row 0 is no encoded bytes"),
        ({"image": cells(False)[:2], "label": [0, 1], "split": ["train", "tset"]}, "split 'tset' is unknown"),
    ],
)
def test_a_table_that_can_not_be_used_is_refused(tmp_path, columns, words):
    with pytest.raises(DataError, match=words):
        load_dataset(write_parquet(tmp_path / "t.parquet", **columns))
