"""What every source becomes: checked shapes and labels, a fingerprint that misses nothing, fitting augmentation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ptm_ray.data.dataset import (
    COLOUR_OPS,
    MedicalDataset,
    Split,
    as_labels,
    as_uint8,
    check,
    make_split,
    numbered_classes,
)
from ptm_ray.errors import DataError


def dataset(classes=2, channels=1, side=8, n=6, **changes):
    draw = np.random.default_rng(0)
    splits = {
        part: Split(draw.integers(0, 256, (n, side, side, channels), dtype=np.uint8), np.arange(n) % classes)
        for part in ("train", "val", "test")
    }
    names = tuple("abcdef"[:classes])
    return MedicalDataset(**{"name": "set", **splits, "class_names": names, "task": "binary-class", **changes})


def changed(split, *, pixel=0, label=0):
    images, labels = split.images.copy(), split.labels.copy()
    images[2, 3, 4, 0] += pixel
    labels[2] += label
    return Split(images, labels)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("change", [{"pixel": 1}, {"label": 1}])
def test_one_pixel_or_label_of_any_split_changes_the_fingerprint(part, change):
    whole = dataset()
    other = replace(whole, **{part: changed(getattr(whole, part), **change)})
    assert other.fingerprint != whole.fingerprint


def test_the_fingerprint_knows_images_labels_and_class_names_and_nothing_else():
    whole = dataset()
    assert replace(whole, class_names=("a", "c")).fingerprint != whole.fingerprint
    assert replace(whole, class_names=("ab", "")).fingerprint != replace(whole, class_names=("a", "b")).fingerprint
    assert replace(whole, train=whole.val, val=whole.train).fingerprint != whole.fingerprint
    assert replace(whole, name="other", notes=("moved",), licence="MIT").fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("channels", "side_matters", "missing"),
    [(3, False, set()), (3, True, {"flip"}), (1, False, {"saturation"}), (1, True, {"flip", "saturation"})],
)
def test_augmentation_leaves_out_what_does_not_suit_the_images(channels, side_matters, missing):
    ops = dataset(channels=channels, side_matters=side_matters).augmentation
    assert set(COLOUR_OPS) - set(ops) == missing
    assert len(ops) == len(set(ops))


@given(arrays.arrays(np.float64, (2, 3, 3), elements=st.floats(0, 1)))
def test_fractions_are_rounded_to_the_nearest_level(fractions):
    fractions[0, 0, :2] = 0, 1
    assert np.abs(as_uint8(fractions, "x")[..., 0] / 255 - fractions).max() <= 0.5 / 255 + 1e-12


@given(arrays.arrays(np.uint8, (2, 3, 3, 3)), st.sampled_from([np.uint8, np.int16, np.uint16, np.int64]))
def test_whole_numbers_keep_their_value_in_every_type(pixels, kind):
    pixels[0, 0, 0] = 200
    assert np.array_equal(as_uint8(pixels.astype(kind), "x"), pixels)


def test_floats_that_run_to_255_keep_their_scale():
    pixels = np.array([0.0, 0.4, 128.0, 255.0]).reshape(1, 2, 2)
    assert as_uint8(pixels, "x").ravel().tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 8)), r"shape \(4, 8\)"),
        (np.zeros((4, 8, 8, 2)), r"shape \(4, 8, 8, 2\)"),
        (np.zeros((4, 8, 6)), "8×6"),
        (np.full((1, 2, 2), np.nan), "4 pixel values are NaN"),
        (np.full((1, 2, 2), -1), "from -1 to -1"),
        (np.full((1, 2, 2), 256), "from 256 to 256"),
        (np.full((1, 2, 2), 1.02), "from 1.02 to 1.02"),
        (np.eye(2, dtype=bool)[None], "no higher than 1 would be black; scale them to 0–255"),
        (np.eye(2, dtype=np.uint8)[None], "no higher than 1 would be black"),
        (np.eye(2, dtype=np.int64)[None], "no higher than 1 would be black"),
        (np.linspace(0, 12, 16).reshape(1, 4, 4), "from 0 to 12, which would leave fewer than 32 grey levels"),
        (np.linspace(0.5, 0.55, 16).reshape(1, 4, 4), "from 0.5 to 0.55, which would leave fewer than 32 grey levels"),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_their_value(images, words):
    with pytest.raises(DataError, match=f"x: .*{words}"):
        as_uint8(images, "x")


def test_dark_images_that_lose_nothing_are_taken():
    dark = np.arange(16).reshape(1, 4, 4)
    for images in (dark.astype(np.uint8), dark.astype(float), (dark / 255).astype(np.float32), 0 * dark):
        assert np.array_equal(as_uint8(images, "x")[..., 0], dark if images.any() else 0 * dark)


@given(st.lists(st.integers(0, 9), min_size=1), st.sampled_from([np.uint8, np.int64, np.float32]), st.booleans())
def test_labels_keep_their_value_in_every_type_and_as_a_column(labels, kind, column):
    given_labels = np.array(labels, kind)
    found = as_labels(given_labels[:, None] if column else given_labels, "x")
    assert found.dtype == np.int64
    assert found.tolist() == labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((3, 2)), "multi-label"),
        (np.array(1), r"shape \(\); give one class per image"),
        (np.array([0, 0.5]), "label 0.5 is not a whole number"),
        (np.array([0, np.inf]), "label inf"),
        (np.array(["a", "b"]), "type <U1"),
    ],
)
def test_arrays_that_are_no_labels_are_refused_with_their_value(labels, words):
    with pytest.raises(DataError, match=f"x: .*{words}"):
        as_labels(labels, "x")


def test_images_and_labels_must_pair_up_and_not_be_none():
    with pytest.raises(DataError, match="3 images but 2 labels"):
        make_split(np.zeros((3, 4, 4)), np.zeros(2), "x")
    with pytest.raises(DataError, match="no images"):
        make_split(np.zeros((0, 4, 4)), np.zeros(0), "x")
    with pytest.raises(DataError, match="give one class per image"):
        make_split(np.zeros((3, 4, 4)), np.array(1), "x")


def test_a_label_as_high_as_there_are_images_is_no_class_number():
    assert numbered_classes(2, 3, "x") == ("0", "1", "2")
    with pytest.raises(DataError, match="label 3 among 3 images"):
        numbered_classes(3, 3, "x")


def test_a_whole_dataset_passes_the_check_unchanged():
    whole = dataset()
    assert check(whole) is whole


def of_labels(*labels):
    return Split(np.zeros((len(labels), 8, 8, 1), np.uint8), np.array(labels))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ("a",)}, r"only one class \('a'\)"),
        ({"class_names": ("a", "b", "c")}, "class 'c' has no training image; drop the class"),
        ({"test": Split(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]))}, r"test images are \(4, 4, 1\)"),
        ({"val": of_labels(0, 2)}, "val labels run from 0 to 2, but there are 2 classes"),
        ({"train": of_labels(-1, 0, 1)}, "train labels run from -1 to 1"),
        ({"class_names": ("a", "a")}, "two classes are called 'a'; give each a name of its own"),
        ({"class_names": ("a", "b\udcff")}, r"the name 'b\\udcff' is no UTF-8; rename it"),
        ({"name": "\udcff"}, "is no UTF-8; rename it"),
    ],
)
def test_splits_and_classes_that_do_not_fit_together_are_refused(changes, words):
    with pytest.raises(DataError, match=words):
        check(dataset(**changes))


def test_images_that_stand_in_two_splits_and_classes_that_lack_images_are_noted():
    whole = dataset()
    # Under whatever label.
    known = Split(np.concatenate([whole.test.images[:4], whole.train.images[2:4]]), np.zeros(6, np.int64))
    found = check(replace(whole, test=known, notes=("before",)))
    assert found.notes == (
        "before",
        "test has no image of b, which no score on it speaks of",
        "2 of 6 test images are training images too",
    )
    assert check(replace(whole, val=whole.train)).notes == ("6 of 6 val images are training images too",)
    seen_twice = Split(np.concatenate([whole.test.images[:5], whole.val.images[:1]]), whole.test.labels)
    assert check(replace(whole, test=seen_twice)).notes == ("1 of 6 test images are validation images too",)


def test_a_print_is_of_all_of_an_image_and_of_nothing_else():
    split = dataset(channels=3).train
    assert len(set(split.prints.tolist())) == len(split)
    assert np.array_equal(Split(split.images.copy(), 0 * split.labels).prints, split.prints)
    others = np.flatnonzero(changed(split, pixel=1).prints != split.prints)
    assert others.tolist() == [2]


def test_images_lie_in_one_order_in_memory_however_they_were_made():
    planar = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4).transpose(0, 2, 3, 1)
    split = Split(planar, np.array([0, 1]))
    assert np.array_equal(split.images, planar)
    assert split.images.flags.c_contiguous
    assert not planar.flags.c_contiguous
