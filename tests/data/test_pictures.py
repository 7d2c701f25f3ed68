"""Folders and tables of encoded pictures: cropped to their middle, scaled, grey only where all are grey."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image

from ptm_ray.data import load_dataset
from ptm_ray.data.load import load_training_images
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
    parts = (("train", 4, 20), ("val", 2, 24), ("test", 3, 28))
    for part, count, side in parts:
        write_classes(tmp_path / part, {"a": count, "b": count}, side=side)
    dataset = load_dataset(tmp_path)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [8, 4, 6]
    assert dataset.val.labels.tolist() == [0, 0, 1, 1]
    assert len(dataset.notes) == 1


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "validation", "TEST"), ("Training", "val", "Testing")]
)
def test_folders_of_splits_may_be_called_otherwise(tmp_path, names):
    for name, count in zip(names, (4, 2, 3), strict=True):
        write_classes(tmp_path / name, {"a": count, "b": count})
    # What programs leave behind is no split and no class.
    for hidden in (tmp_path / ".cache", tmp_path / names[1] / ".cache", tmp_path / names[0] / "a" / ".checkpoints"):
        hidden.mkdir()
        Image.fromarray(picture()).save(hidden / "0.png")
    (tmp_path / names[0] / "a" / "._0.png").write_bytes(b"of another file")
    dataset = load_dataset(tmp_path)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [8, 4, 6]
    assert dataset.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train", "extra"), "has 'extra' beside its train folder; call it val or test, or move it away"),
        (("train", "val", "valid"), "has both val and valid, which are one split; keep one"),
        (("val", "test"), "has test and val but no train folder"),
        (("Validation", "Testing"), "has Testing and Validation but no train folder"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, names, words):
    for name in names:
        write_classes(tmp_path / name, {"a": 4, "b": 4})
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path)


def test_without_a_train_folder_classes_may_be_called_like_splits(tmp_path):
    write_classes(tmp_path, {"valid": 4, "void": 4})
    assert load_dataset(tmp_path).class_names == ("valid", "void")


def test_files_of_other_endings_are_passed_over_and_counted(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "labels.csv").touch()
    for name in ("a/0.dcm", "a/1.bmp", "b/notes.txt", "b/.DS_Store"):
        (tmp_path / name).touch()
    assert load_dataset(tmp_path).notes[1] == "files passed over, as they are no PNG, JPEG or TIFF by their ending: 3"


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


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_whose_zero_is_white_looks_alike_in_8_and_16_bits(tmp_path, compression):
    shown = picture(8, colour=False)
    shown[0, :2] = 0, 255

    def read(name, image):
        (tmp_path / name).mkdir()
        white_is_zero = {"tiffinfo": {262: 0}, "compression": compression}
        return one_picture(tmp_path / name, lambda folder: image.save(folder / "!.tif", **white_is_zero))

    # Pillow itself turns the eight bits about as it writes.
    eight = read("eight", Image.fromarray(shown))
    sixteen = read("sixteen", Image.fromarray(np.uint16(65535) - shown.astype(np.uint16) * 257))
    assert np.array_equal(eight[..., 0], shown)
    assert np.array_equal(sixteen, eight)


def test_one_coloured_picture_makes_the_set_coloured(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 4}, colour=False, side=8)
    assert load_dataset(tmp_path, size=8).channels == 1
    Image.fromarray(picture(8)).save(tmp_path / "b" / "coloured.png")
    dataset = load_dataset(tmp_path, size=8)
    assert dataset.channels == 3
    grey = dataset.train.images[dataset.train.labels == 0]
    assert (grey == grey[..., :1]).all()


def one_picture(folder, write):
    """What is read of a file, beside others of the same size; (8, 8, channels)."""
    write_classes(folder, {"a": 3, "b": 4}, colour=False, side=8)
    write(folder / "a")
    split, _ = load_training_images(folder, 8)
    return split.images[0]


def test_what_is_transparent_lies_on_black(tmp_path):
    colour, opaque = picture(8), np.full((8, 8, 1), 255, np.uint8)
    opaque[:, 3:] = 0
    opaque[0, 0] = 51
    shown = one_picture(
        tmp_path / "rgba", lambda folder: Image.fromarray(np.dstack([colour, opaque])).save(folder / "!.png")
    )
    assert np.array_equal(shown[1:, :3], colour[1:, :3])
    assert not shown[:, 3:].any()
    assert np.abs(shown[0, 0] - colour[0, 0] / 5).max() <= 1
    # Without colour there is still none.
    grey = one_picture(
        tmp_path / "la", lambda folder: Image.fromarray(np.dstack([colour[..., :1], opaque])).save(folder / "!.png")
    )
    assert grey.shape == (8, 8, 1)
    assert np.array_equal(grey[1:, :3], colour[1:, :3, :1])
    assert not grey[:, 3:].any()


def test_a_transparent_colour_of_a_palette_lies_on_black(tmp_path):
    image = Image.fromarray(np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1).astype(np.uint8))
    image.putpalette([10, 20, 30, 200, 210, 220])
    shown = one_picture(tmp_path, lambda folder: image.save(folder / "!.png", transparency=1))
    assert (shown[:, :4] == [10, 20, 30]).all()
    assert not shown[:, 4:].any()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_picture_that_lies_on_its_side_is_turned_upright(tmp_path, ending):
    upright = picture(8, colour=False)
    exif = Image.Exif()
    # 6: the camera was turned to the right; what is stored must be turned so too.
    exif[0x0112] = 6
    lying = Image.fromarray(np.rot90(upright, 1))
    assert np.array_equal(
        one_picture(tmp_path, lambda folder: lying.save(folder / f"!.{ending}", exif=exif))[..., 0], upright
    )


def test_a_phones_photograph_with_a_preview_behind_it_is_read(tmp_path):
    pages = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (200, 90)]
    shown = one_picture(
        tmp_path, lambda folder: pages[0].save(folder / "!.jpg", "MPO", save_all=True, append_images=pages[1:])
    )
    assert (shown == 200).all()


def deep_png(channels, kind):
    """A PNG of 16 bits a value, which Pillow writes of none but grayscale."""
    rows = b"".join(b"\0" + bytes(range(16 * channels)) for _ in range(8))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(**options):
    file = io.BytesIO()
    pixels = np.arange(3 * 64, dtype=np.uint16).reshape(8, 8, 3) * 300
    tifffile.imwrite(file, pixels.transpose(2, 0, 1) if "planarconfig" in options else pixels, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        deep_png(3, 2),
        deep_png(2, 4),
        deep_png(4, 6),
        deep_tiff(photometric="rgb"),
        deep_tiff(photometric="rgb", compression="zlib"),
        deep_tiff(photometric="rgb", planarconfig="separate"),
    ],
    ids=["png", "grey and alpha", "png with alpha", "tiff", "packed tiff", "planar tiff"],
)
def test_colours_of_16_bits_are_refused_and_not_halved(tmp_path, data):
    def write(folder):
        (folder / ("!.png" if data.startswith(b"\x89PNG") else "!.tif")).write_bytes(data)

    with pytest.raises(
        DataError, match=r"a/!\.(png|tif) has colours or transparency of 16 bits.*; save it with 8 bits"
    ):
        one_picture(tmp_path, write)


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_several_pages_or_frames_are_refused(tmp_path, ending):
    pages = [Image.fromarray(picture(8, seed=seed)) for seed in range(3)]
    with pytest.raises(DataError, match=rf"a/!\.{ending} holds 3 pages or frames; save the one that is meant"):
        one_picture(
            tmp_path, lambda folder: pages[0].save(folder / f"!.{ending}", save_all=True, append_images=pages[1:])
        )


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


@pytest.mark.parametrize("tag", [1, 26])
def test_a_picture_whose_exif_can_not_be_understood_is_named(tmp_path, tag):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"

    def write(folder):
        Image.fromarray(picture(8)).save(folder / "!.jpg", exif=exif)
        whole = (folder / "!.jpg").read_bytes()
        # Words in a tag that holds numbers.
        (folder / "!.jpg").write_bytes(whole.replace(b"\x01\x0f\x00\x02", bytes([1, tag, 0, 2])))

    with pytest.raises(DataError, match=r"!\.jpg can't be read as an image .*; mend or remove it"):
        one_picture(tmp_path, write)


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


def test_a_table_may_say_whose_images_they_are(tmp_path):
    patient = ["ann", "bob", None, "ann", "cy", "dee", "", "bob", "eve", "fay", "gus", "hal"]
    columns = {"image": cells(False), "label": [0, 1] * 6, "patient": patient}
    dataset = load_dataset(write_parquet(tmp_path / "t.parquet", **columns), size=16)
    parts = (dataset.train, dataset.val, dataset.test)
    rows_of = [
        {next(k for k, row in enumerate(ROWS) if np.array_equal(row, one)) for one in part.images} for part in parts
    ]
    known = [{patient[row] for row in rows if patient[row]} for rows in rows_of]
    assert sum(map(len, known)) == len(set.union(*known)) == 8
    assert "whole patients" in dataset.notes[-1]
    split = ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    dataset = load_dataset(write_parquet(tmp_path / "s.parquet", **columns, split=split), size=16)
    assert dataset.notes[1:] == ("1 patients of val are patients of train too: scores on it flatter",)
    # Who they are goes no further.
    assert not any(name in repr(dataset) for name in ("ann", "bob"))


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


def test_the_page_on_own_data_makes_a_table_that_says_whose_images_they_are(tmp_path, monkeypatch, pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "your-own-data.md").read_text()
    monkeypatch.chdir(tmp_path)
    rows = ["file,label,patient"]
    for index in range(24):
        Image.fromarray(picture(colour=False, seed=index)).save(f"{index}.png")
        rows.append(f"{index}.png,{'ab'[index % 2]},patient {index // 4}")
    (tmp_path / "scans.csv").write_text("\n".join(rows))
    exec(page.split("```python\n")[1].split("```")[0], {})
    dataset = load_dataset("scans.parquet", size=16)
    assert dataset.class_names == ("a", "b")
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 24
    assert "whole patients" in dataset.notes[1]
