"""Splits that are missing are cut from train: stratified, always the same, nothing lost or doubled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptm_ray.core.seeds import Seeds
from ptm_ray.data import splits
from ptm_ray.data.dataset import Source, Split
from ptm_ray.data.splits import complete, cut_patients
from ptm_ray.errors import DataError

NAMES = ("a", "b", "c")


def numbered(counts):
    """Images that are their own row number, so that each can be followed."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return Split(np.broadcast_to(rows, (len(labels), 2, 2, 1)).copy(), labels)


def cut(whole, share, stage, names):
    """(rest, cut)"""
    chosen = splits.cut(whole, share, stage, names)
    return Split(whole.images[~chosen], whole.labels[~chosen]), Split(whole.images[chosen], whole.labels[chosen])


def rows(*parts):
    return sorted(int(row) for split in parts for row in split.images[:, 0, 0, 0])


@given(st.lists(st.integers(2, 40), min_size=1, max_size=3), st.floats(0.01, 0.99))
def test_a_cut_takes_the_share_of_every_class_and_loses_nothing(counts, share):
    whole = numbered(counts)
    rest, taken = cut(whole, share, "test", NAMES)
    assert rows(rest, taken) == rows(whole)
    for label, count in enumerate(counts):
        mine = int((taken.labels == label).sum())
        assert 1 <= mine < count
        assert abs(mine - share * count) <= 1
    labels = dict(zip(rows(whole), whole.labels.tolist(), strict=True))
    for split in (rest, taken):
        assert [labels[int(row)] for row in split.images[:, 0, 0, 0]] == split.labels.tolist()


def test_a_cut_is_always_the_same_and_stages_differ():
    whole = numbered((30, 20, 10))
    assert rows(cut(whole, 0.2, "test", NAMES)[1]) == rows(cut(whole, 0.2, "test", NAMES)[1])
    assert rows(cut(whole, 0.2, "test", NAMES)[1]) != rows(cut(whole, 0.2, "validation", NAMES)[1])


def cut_as_before(split, share, stage):
    """The rows that were cut before copies were looked for."""
    draw, chosen = np.random.default_rng(Seeds(0).derive(stage)), []
    for label in np.unique(split.labels):
        own = np.flatnonzero(split.labels == label)
        chosen += draw.permutation(own)[: min(len(own) - 1, max(1, round(share * len(own))))].tolist()
    return sorted(chosen)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=3), st.floats(0.01, 0.99))
def test_without_copies_the_cut_is_the_one_that_it_always_was(counts, share):
    whole = numbered(counts)
    assert rows(cut(whole, share, "test", NAMES)[1]) == cut_as_before(whole, share, "test")


@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=12), min_size=1, max_size=3), st.floats(0.05, 0.95))
def test_copies_of_an_image_stay_on_one_side_and_nothing_is_lost(copies, share):
    # Each number is an image, and stands there as often.
    labels = np.repeat(np.arange(len(copies)), [sum(own) for own in copies])
    images = np.repeat(np.arange(sum(map(len, copies))), np.concatenate(copies)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    whole = Split(np.broadcast_to(images[order, None, None, None], (len(images), 2, 2, 1)).copy(), labels[order])
    rest, taken = cut(whole, share, "test", NAMES)
    assert not set(rows(rest)) & set(rows(taken))
    assert rows(rest, taken) == rows(whole)
    for label, own in enumerate(copies):
        assert (rest.labels == label).any()
        # Nearer to the share than the last image's copies are many, but for what leaves one image to both.
        mine = int((taken.labels == label).sum())
        assert abs(mine - share * sum(own)) <= max(own) + 1
        assert mine > 0


def test_an_image_under_two_labels_stays_in_the_rest():
    whole = numbered((20, 20))
    whole.images[whole.labels == 1] += 100
    first = {label: np.flatnonzero(whole.labels == label) for label in (0, 1)}
    whole.images[first[1][:5]] = whole.images[first[0][:5]]
    for stage in ("test", "validation", "third"):
        rest, taken = cut(whole, 0.3, stage, NAMES)
        assert not set(rows(rest)) & set(rows(taken))
        assert set(np.bincount(taken.labels)) <= set(range(1, 7))


def test_copies_of_one_image_alone_are_cut_like_images():
    whole = Split(np.zeros((10, 2, 2, 1), np.uint8), np.repeat([0, 1], 5))
    rest, taken = cut(whole, 0.2, "test", NAMES)
    assert (np.bincount(rest.labels).tolist(), np.bincount(taken.labels).tolist()) == ([4, 4], [1, 1])


def test_a_class_of_one_image_is_named():
    with pytest.raises(DataError, match="class 'b' has one image left, too few to cut a test split"):
        cut(numbered((5, 1)), 0.2, "test", NAMES)


def made_of(patients=None, **parts):
    return complete(Source("set", parts, NAMES, "multi-class", notes=("before",), patients=patients or {}))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=12, max_size=30))
def test_patients_are_cut_whole_and_every_class_is_on_both_sides(images):
    """Of each patient so many images of each class."""
    labels = np.concatenate([np.repeat([0, 1, 2], own) for own in images])
    patients = np.repeat(np.arange(len(images)), [sum(own) for own in images])
    order = np.random.default_rng(0).permutation(len(labels))
    labels, patients = labels[order], patients[order]
    whole = Split(np.zeros((len(labels), 2, 2, 1), np.uint8), labels)
    chosen = cut_patients(whole, 0.2, "test", NAMES, patients)
    assert not set(patients[chosen]) & set(patients[~chosen])
    assert set(labels[chosen]) == set(labels[~chosen]) == {0, 1, 2}
    assert 0.03 < chosen.mean() < 0.45
    assert np.array_equal(chosen, cut_patients(whole, 0.2, "test", NAMES, patients))


def test_both_splits_are_of_whole_patients_and_the_notes_say_so():
    whole = numbered((60, 60, 60))
    numbers = np.random.default_rng(1).permutation(np.repeat(np.arange(30), 6))
    dataset = made_of({"train": numbers}, train=whole)
    assert rows(dataset.train, dataset.val, dataset.test) == rows(whole)
    of = [{int(numbers[row]) for row in rows(part)} for part in (dataset.train, dataset.val, dataset.test)]
    assert sum(map(len, of)) == len(set.union(*of)) == 30
    assert dataset.notes[1].endswith("images (about a fifth, stratified, whole patients) were cut from train")
    assert "(about a tenth, stratified, whole patients)" in dataset.notes[2]
    assert len(dataset.notes) == 3


def test_patients_of_two_splits_are_counted():
    whole = numbered((9, 9, 9))
    patients = {"train": np.arange(27), "val": np.arange(100, 127), "test": np.arange(24, 51)}
    dataset = made_of(patients, train=whole, val=whole, test=whole)
    assert dataset.notes == ("before", "3 patients of test are patients of train too: scores on it flatter")
    # What is kept is decided on val.
    patients["val"] = np.arange(49, 76)
    assert made_of(patients, train=whole, val=whole, test=whole).notes[1:] == (
        "3 patients of test are patients of train too: scores on it flatter",
        "2 patients of test are patients of val too: scores on it flatter",
    )


def test_a_class_of_one_patient_is_named():
    whole = numbered((6, 6))
    with pytest.raises(DataError, match="class 'b' is of one patient, too few to cut a test split from; give"):
        cut_patients(whole, 0.2, "test", NAMES, np.where(whole.labels == 1, 99, np.arange(12)))


def test_splits_that_are_given_are_left_alone():
    whole = numbered((9, 9, 9))
    dataset = made_of(train=whole, val=whole, test=whole)
    assert dataset.notes == ("before",)
    assert rows(dataset.train) == rows(dataset.val) == rows(dataset.test) == rows(whole)


def test_a_missing_validation_split_is_a_tenth_of_train_and_the_notes_say_so():
    whole = numbered((20, 20, 20))
    dataset = made_of(train=whole, test=whole)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (54, 6, 60)
    assert rows(dataset.train, dataset.val) == rows(whole)
    assert dataset.notes[1:] == ("no validation split was given: 6 images (a tenth, stratified) were cut from train",)


def test_when_both_are_missing_all_three_are_disjoint_and_the_notes_say_so():
    whole = numbered((50, 30, 20))
    dataset = made_of(train=whole)
    assert rows(dataset.train, dataset.val, dataset.test) == rows(whole)
    assert np.bincount(dataset.test.labels).tolist() == [10, 6, 4]
    assert np.bincount(dataset.val.labels).tolist() == [4, 2, 2]
    assert [note.split(":")[0] for note in dataset.notes] == [
        "before",
        "no test split was given",
        "no validation split was given",
    ]
