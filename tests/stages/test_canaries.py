"""Canaries: a coin for each, and nothing lost of the rest."""

from dataclasses import replace

import numpy as np
import pytest

from ptm_ray.data.dataset import Split
from ptm_ray.errors import ConfigError
from ptm_ray.stages.canaries import with_canaries
from tests.small import small_dataset


def pictures(split, label):
    return sorted(picture.tobytes() for picture in split.images[split.labels == label])


def test_canaries_leave_and_those_that_the_coin_chose_come_back():
    data = small_dataset()
    planted = with_canaries(data, 24, seed=0, ipc=2)
    assert len(planted) == 24
    assert planted.mislabelled.sum() == 12
    inside = planted.members
    assert 4 < inside.sum() < 20
    for label in range(data.num_classes):
        own = [picture.tobytes() for picture in planted.images[inside & (planted.labels == label)]]
        assert pictures(planted.audited.train, label) == sorted([*pictures(planted.without.train, label), *own])
    assert len(planted.without.train) == len(data.train) - 24
    everything = {picture.tobytes() for picture in data.train.images}
    taken = {picture.tobytes() for picture in planted.images}
    assert {picture.tobytes() for picture in planted.without.train.images} == everything - taken
    assert planted.audited.test is data.test
    assert planted.audited.fingerprint != data.fingerprint
    assert "not to be shared" in planted.audited.notes[-1]


def test_one_half_has_a_wrong_label_and_the_other_its_own():
    data = small_dataset()
    true = {picture.tobytes(): label for picture, label in zip(data.train.images, data.train.labels, strict=True)}
    planted = with_canaries(data, 30, seed=1, ipc=2)
    own = np.array([true[picture.tobytes()] for picture in planted.images])
    assert ((planted.labels != own) == planted.mislabelled).all()
    # Wrong in every way that there is.
    assert len(set(zip(own[planted.mislabelled], planted.labels[planted.mislabelled], strict=True))) == 6


def test_the_same_seed_gives_the_same_coins_and_another_others():
    data = small_dataset()
    first, again, other = (with_canaries(data, 24, seed=seed, ipc=2) for seed in (0, 0, 1))
    assert (first.members == again.members).all()
    assert first.audited.fingerprint == again.audited.fingerprint
    assert first.audited.fingerprint != other.audited.fingerprint


def test_no_class_loses_more_than_a_quarter_or_what_a_set_begins_with():
    data = small_dataset()
    rows = np.concatenate([np.flatnonzero(data.train.labels == label)[:n] for label, n in enumerate((40, 40, 10))])
    few = replace(data, train=Split(data.train.images[rows], data.train.labels[rows]))
    assert np.bincount(with_canaries(few, None, seed=0, ipc=2).without.train.labels).tolist() == [30, 30, 8]
    assert np.bincount(with_canaries(few, None, seed=0, ipc=10).without.train.labels).tolist() == [30, 30, 10]


def test_an_image_of_which_there_is_a_copy_is_no_canary():
    data = small_dataset()
    images, (own,) = data.train.images.copy(), np.nonzero(data.train.labels == 0)
    # Of the first class's forty images the second ten are the first ten again, and ten stand in the other splits.
    images[own[10:20]] = images[own[:10]]
    images[own[20:25]], images[own[25:30]] = data.val.images[:5], data.test.images[:5]
    planted = with_canaries(replace(data, train=Split(images, data.train.labels)), None, seed=0, ipc=2)
    taken = {picture.tobytes() for picture in planted.images}
    assert len(planted) == 30
    assert not taken & {picture.tobytes() for picture in images[own[:30]]}
    images[own[30:35]] = images[own[35:]]
    copied = replace(data, train=Split(images, data.train.labels))
    with pytest.raises(ConfigError, match=r"30 canaries: small can spare 20 of 120 .* no copies"):
        with_canaries(copied, 30, seed=0, ipc=2)


@pytest.mark.parametrize("count", [0, -3, 15, 31, 10**6])
def test_a_number_that_can_not_be_is_refused_with_those_that_can(count):
    with pytest.raises(
        ConfigError, match=rf"{count} canaries: small can spare 30 of 120 .* fewer than 16 tell nothing"
    ):
        with_canaries(small_dataset(), count, seed=0, ipc=2)


def test_coins_that_all_fell_alike_are_refused_before_any_work():
    alike = []
    for seed in range(600):
        try:
            planted = with_canaries(small_dataset(), 16, seed=seed, ipc=2)
        except ConfigError as error:
            alike.append(str(error))
        else:
            for half in (planted.members[:8], planted.members[8:]):
                assert 0 < half.sum() < 8
    # Each seed has chance 2 · 2^-7: nine are expected, and none comes once in ten thousand.
    assert alike
    assert "of 8 coins all fell alike with seed" in alike[0]


def test_a_dataset_that_is_too_small_is_refused():
    data = small_dataset()
    with pytest.raises(ConfigError, match=r"can spare 3 of 120 training images .* which keeps 39"):
        with_canaries(data, None, seed=0, ipc=39)
