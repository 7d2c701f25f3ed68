"""The drawn default is the same everywhere, in eight classes that vary within."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from ptm_ray.data import load_dataset
from ptm_ray.data.phantom import CLASSES, cellphantom, draw, paint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def phantom():
    return load_dataset("cellphantom")


DRAW = """
from hashlib import sha256
from ptm_ray.core.seeds import Seeds
from ptm_ray.data.phantom import paint
import numpy as np
images = [paint(k % 8, np.random.default_rng(Seeds(0).derive("cellphantom val", k))) for k in range(32)]
print(sha256(np.stack(images).tobytes()).hexdigest())
"""


def test_another_process_draws_the_same_images(phantom):
    found = subprocess.run([sys.executable, "-c", DRAW], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == sha256(phantom.val.images[:32].tobytes()).hexdigest()


def test_images_are_kept_and_drawn_again_where_the_file_is_gone_damaged_or_can_not_be_written(
    phantom, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr("ptm_ray.data.phantom.PARTS", {"train": 2, "val": 1, "test": 1})
    monkeypatch.setattr("ptm_ray.data.phantom.draw", lambda *part: drawn.append(part) or draw(*part))
    monkeypatch.setenv("PTM_RAY_CACHE", str(tmp_path / "cache"))

    def taken():
        drawn.clear()
        found = cellphantom()
        assert np.array_equal(found.train.images, phantom.train.images[:16])
        assert np.array_equal(found.test.labels, phantom.test.labels[:8])
        return len(drawn)

    fresh = cellphantom().train.images
    assert len(drawn) == 3
    assert fresh.strides == phantom.train.images.strides
    assert (taken(), taken()) == (0, 0)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    flipped = bytes([*whole[:5000], whole[5000] ^ 1, *whole[5001:]])
    for damaged in (b"", whole[:1000], whole[:-100], flipped):
        kept.write_bytes(damaged)
        assert (taken(), taken()) == (3, 0)
    monkeypatch.setenv("PTM_RAY_CACHE", str(kept / "no folder"))
    assert (taken(), taken()) == (3, 3)


def test_it_has_eight_named_classes_of_rgb_pixels_in_equal_number(phantom):
    assert phantom.class_names == CLASSES
    assert (phantom.num_classes, phantom.channels, phantom.resolution) == (8, 3, 32)
    assert not phantom.side_matters
    for split, per_class in ((phantom.train, 100), (phantom.val, 20), (phantom.test, 50)):
        assert split.images.dtype == np.uint8
        assert np.bincount(split.labels).tolist() == [per_class] * 8


def test_no_two_images_are_alike_within_or_across_splits(phantom):
    everything = np.concatenate([phantom.train.images, phantom.val.images, phantom.test.images])
    assert len({image.tobytes() for image in everything}) == len(everything) == 1360


def test_images_of_a_class_differ_far_more_than_noise_does(phantom):
    pixels = phantom.train.images.astype(float)
    for label in range(8):
        mine = pixels[phantom.train.labels == label]
        smooth = mine.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
        assert smooth.std(0).mean() > 15


def test_classes_can_be_told_apart_and_not_by_mean_colour_alone(phantom):
    def balanced_accuracy(features):
        train, test = (features(split.images.astype(float)) for split in (phantom.train, phantom.test))
        centres = np.stack([train[phantom.train.labels == label].mean(0) for label in range(8)])
        nearest = ((test[:, None] - centres) ** 2).sum(2).argmin(1)
        return (nearest == phantom.test.labels).mean()

    whole = balanced_accuracy(lambda images: images.reshape(len(images), -1))
    colour = balanced_accuracy(lambda images: images.mean((1, 2)))
    assert whole > 0.35
    assert whole > colour + 0.1


def test_the_same_seed_paints_the_same_image_and_another_seed_another():
    def one(seed):
        return paint(3, np.random.default_rng(seed))

    assert np.array_equal(one(5), one(5))
    assert not np.array_equal(one(5), one(6))
