"""The set starts from the images it should, and students see all of it evenly."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptm_ray.core.augment import OPS
from ptm_ray.core.synthetic import NOISE_STD, Position, balanced_rows, class_rows, from_noise, from_real, inner_batches
from ptm_ray.errors import NotEnoughImages

NAMES = ("neutrophil", "basophil", "monocyte")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def real(counts=(9, 5, 12)):
    """Images that hold their own row number."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=generator(7))]
    return torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), labels


def test_real_initialisation_takes_distinct_images_of_each_class_in_order():
    images, labels = real()
    made = from_real(images, labels, balanced_rows(labels, 4, NAMES, generator()), 3, 0.05)
    rows = made.images[:, 0, 0, 0].long()
    assert made.classes.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(labels[rows], made.classes)
    assert len(set(rows.tolist())) == 12
    torch.testing.assert_close(made.log_lr.exp(), torch.tensor(0.05))


def test_the_inner_lrs_that_are_handed_on_are_those_of_the_trajectorys_ends_and_of_progressive_segments():
    images, labels = real()
    made = from_real(images, labels, balanced_rows(labels, 1, NAMES, generator()), 3, 0.05)
    for tilt, value in zip(made.tilts, (0.5, -0.25), strict=True):
        tilt.fill_(value)
    expected = {"progressive": -0.25, "random_first": -0.5, "random_last": 0.5}
    assert made.inner_lrs() == pytest.approx({name: 0.05 * math.exp(value) for name, value in expected.items()})
    assert float(made.log_lr_at(Position(along=0.4)).exp()) == pytest.approx(0.05 * math.exp(0.2))


def test_learning_the_set_leaves_the_real_images_alone():
    images, labels = real()
    made = from_real(images, labels, balanced_rows(labels, 2, NAMES, generator()), 3, 0.05)
    made.images.zero_()
    assert torch.equal(images, real()[0])


def test_another_seed_takes_other_images_and_the_same_seed_the_same():
    _, labels = real()
    first, again, other = (balanced_rows(labels, 4, NAMES, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_class_with_too_few_images_is_named_with_its_number_and_the_ways_out():
    _, labels = real()
    with pytest.raises(NotEnoughImages) as caught:
        balanced_rows(labels, 6, NAMES, generator())
    assert str(caught.value) == (
        "class 'basophil' has 5 training images, ipc is 6; lower --ipc, or use --images.init noise or real-resampled"
    )


def test_resampling_repeats_images_only_where_a_class_has_too_few():
    _, labels = real()
    rows = balanced_rows(labels, 7, NAMES, generator(), replacement=True)
    for label, chosen in enumerate(rows.view(3, 7)):
        assert set(chosen.tolist()) <= set(class_rows(labels, label).tolist())
        assert (len(set(chosen.tolist())) == 7) == (label != 1)


def test_noise_has_the_variance_it_says_and_every_class_equally_often():
    made = from_noise((3, 16, 16), 5, 20, 0.01, generator())
    assert made.images.shape == (100, 3, 16, 16)
    assert made.classes.bincount().tolist() == [20] * 5
    assert abs(float(made.images.mean())) < 0.02
    assert float(made.images.std()) == pytest.approx(NOISE_STD, rel=0.02)


def test_labels_are_one_hot_until_they_are_learned():
    made = from_noise((1, 2, 2), 3, 2, 0.01, generator())
    assert made.labels().tolist() == [[1, 0, 0]] * 2 + [[0, 1, 0]] * 2 + [[0, 0, 1]] * 2
    made.label_logits = torch.randn(6, 3, generator=generator())
    expected = made.label_logits.exp() / made.label_logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(made.labels(), expected)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 20))
def test_batches_have_one_size_and_cover_the_set_evenly(num_images, batch_size, steps):
    batches = inner_batches(num_images, batch_size, steps, (), generator())
    size = min(num_images, batch_size)
    assert [len(batch.rows) for batch in batches] == [size] * steps
    seen = Counter(row for batch in batches for row in batch.rows.tolist())
    times = [seen[row] for row in range(num_images)]
    assert max(times) - min(times) <= 1
    assert sum(times) == steps * size


def test_a_set_that_fits_a_batch_is_seen_whole_at_every_step():
    for batch in inner_batches(6, 32, 5, (), generator()):
        assert sorted(batch.rows.tolist()) == list(range(6))


def test_every_step_draws_its_own_augmentation_for_all_its_images():
    batches = inner_batches(10, 4, 60, tuple(OPS), generator())
    assert {batch.draw.op for batch in batches} == set(OPS)
    assert {len(batch.draw.strength) for batch in batches} == {4}
    assert len({batch.draw.strength[0, 0].item() for batch in batches}) == 60
    assert all(batch.draw.op == "" for batch in inner_batches(10, 4, 3, (), generator()))
