"""Splits that are missing are cut from train: stratified, always the same, nothing lost or doubled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptm_ray.data.dataset import Source, Split
from ptm_ray.data.splits import complete, cut
from ptm_ray.errors import DataError

NAMES = ("a", "b", "c")


def numbered(counts):
    """Images that are their own row number, so that each can be followed."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return Split(np.broadcast_to(rows, (len(labels), 2, 2, 1)).copy(), labels)


def rows(*splits):
    return sorted(int(row) for split in splits for row in split.images[:, 0, 0, 0])


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


def test_a_class_of_one_image_is_named():
    with pytest.raises(DataError, match="class 'b' has one image left, too few to cut a test split"):
        cut(numbered((5, 1)), 0.2, "test", NAMES)


def made_of(**splits):
    return complete(Source("set", splits, NAMES, "multi-class", notes=("before",)))


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
