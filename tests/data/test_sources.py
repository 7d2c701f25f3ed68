"""Every kind of file becomes the same pixels and labels that went into it, and says what was done on the way."""

import numpy as np
import pytest

from ptm_ray.data import load_dataset
from ptm_ray.data.load import is_known, load_training_images
from ptm_ray.errors import DataError
from tests.files import PARTS, arrays, write_npz


def test_grayscale_npz_gains_a_channel_axis_and_labels_lose_theirs(tmp_path):
    held = arrays()
    dataset = load_dataset(write_npz(tmp_path / "scans.npz"))
    assert (dataset.name, dataset.channels, dataset.resolution, dataset.num_classes) == ("scans", 1, 16, 3)
    for part in PARTS:
        split = getattr(dataset, part)
        assert np.array_equal(split.images[..., 0], held[f"{part}_images"])
        assert split.labels.tolist() == held[f"{part}_labels"].ravel().tolist()
    assert dataset.notes == ()


def test_a_file_is_looked_for_in_data_root_too_with_its_ending_or_without(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    path = write_npz(tmp_path / "root" / "scans.npz")
    for name in ("scans", "scans.npz"):
        assert load_dataset(name, data_root=tmp_path / "root").fingerprint == load_dataset(path).fingerprint
    with pytest.raises(DataError, match=r"no file or folder scans\.npz"):
        load_dataset("scans.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset("~/root/scans.npz").name == "scans"


def test_an_npz_may_say_whose_images_they_are(tmp_path):
    lone = {"without": ("val_images", "val_labels")}
    patients = np.array(["a", "b", "b", "a", "c", "d", "e", "f", "g", "h", "i", "j"])
    path = write_npz(tmp_path / "told.npz", **lone, train_patients=patients, test_patients=np.arange(12))
    dataset = load_dataset(path)
    assert "whole patients" in dataset.notes[0]
    path = write_npz(tmp_path / "short.npz", train_patients=patients[:5])
    with pytest.raises(DataError, match="train_patients has 5 entries for 12 images; give one for each"):
        load_dataset(path)


def test_rgb_npz_is_taken_as_it_is(tmp_path):
    held = arrays(colour=True)
    dataset = load_dataset(write_npz(tmp_path / "cells.npz", **held))
    assert dataset.channels == 3
    assert np.array_equal(dataset.test.images, held["test_images"])


def test_floats_from_0_to_1_become_the_nearest_of_256_levels(tmp_path):
    fractions = np.random.default_rng(1).random((12, 16, 16))
    fractions[0, 0, :2] = 0, 1
    dataset = load_dataset(write_npz(tmp_path / "floats.npz", train_images=fractions))
    assert np.abs(dataset.train.images[..., 0] / 255 - fractions).max() <= 0.5 / 255 + 1e-12
    assert dataset.train.images[0, 0, :2, 0].tolist() == [0, 255]


def test_classes_are_numbered_unless_the_file_names_them(tmp_path):
    assert load_dataset(write_npz(tmp_path / "a.npz")).class_names == ("0", "1", "2")
    names = np.array(["benign", "unsure", "malignant"])
    named = load_dataset(write_npz(tmp_path / "b.npz", class_names=names))
    assert named.class_names == ("benign", "unsure", "malignant")
    assert named.task == "multi-class"


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    path = write_npz(tmp_path / "objects.npz", train_labels=np.array([{"run": "me"}] * 12, dtype=object))
    with pytest.raises(DataError, match=r"objects\.npz can't be read .*allow_pickle=False"):
        load_dataset(path)


def outcome(path):
    try:
        return load_dataset(path).fingerprint
    except DataError:
        return "refused"


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused_unless_the_damage_is_harmless(tmp_path, compress):
    path = tmp_path / "whole.npz"
    compress(path, **arrays(n=6, side=8))
    whole, outcomes = path.read_bytes(), {outcome(path)}
    for at in range(0, len(whole), 61):
        path.write_bytes(whole[:at] + b"\xff" * 20 + whole[at + 20 :])
        outcomes.add(outcome(path))
    assert len(outcomes - {"refused"}) == 1
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="only a part"):
        load_dataset(path)


def test_a_size_that_the_file_does_not_have_is_refused(tmp_path):
    path = write_npz(tmp_path / "scans.npz")
    assert load_dataset(path, size=16).resolution == 16
    with pytest.raises(DataError, match="16 pixels a side and no other size, not 64; leave size out"):
        load_dataset(path, size=64)


def test_a_set_of_training_images_alone_is_read_whole(tmp_path):
    path = write_npz(tmp_path / "set.npz", without=("val_images", "val_labels", "test_images", "test_labels"))
    split, names = load_training_images(path)
    assert (len(split), names) == (12, ("0", "1", "2"))


@pytest.mark.parametrize(("label", "words"), [(3, "from 0 to 3"), (-1, "from -1 to 2")])
def test_a_set_whose_labels_are_no_classes_is_refused(tmp_path, label, words):
    labels = np.append(np.arange(11) % 3, label)
    path = write_npz(tmp_path / "set.npz", train_labels=labels, class_names=np.array(["a", "b", "c"]))
    with pytest.raises(DataError, match=f"set: train labels run {words}, but there are 3 classes"):
        load_training_images(path)


def test_a_medmnist_file_is_found_in_data_root_and_known_by_its_name(real_data, tmp_path):
    (tmp_path / "pneumoniamnist.npz").symlink_to(real_data / "pneumoniamnist.npz")
    by_name = load_dataset("pneumoniamnist", data_root=tmp_path)
    by_path = load_dataset(tmp_path / "pneumoniamnist.npz")
    for dataset in (by_name, by_path):
        assert dataset.class_names == ("normal", "pneumonia")
        assert (dataset.task, dataset.licence) == ("binary-class", "CC BY 4.0")
        assert dataset.side_matters
        assert "flip" not in dataset.augmentation
    assert by_name.fingerprint == by_path.fingerprint
    assert "zenodo" in by_name.source


def test_a_medmnist_set_of_another_size_is_found_by_flag_and_size_and_by_the_name_of_its_file(tmp_path):
    write_npz(tmp_path / "pneumoniamnist_64.npz", **arrays(side=64, classes=2))
    whole = load_dataset("pneumoniamnist", size=64, data_root=tmp_path)
    # As a set's recipe has it.
    again = load_dataset(whole.name, size=64, data_root=tmp_path)
    assert (again.name, again.resolution, again.side_matters) == ("pneumoniamnist_64", 64, True)
    assert again.fingerprint == whole.fingerprint == load_dataset(whole.name, data_root=tmp_path).fingerprint
    assert is_known(whole.name)
    assert not is_known("pneumoniamnist_63")
    with pytest.raises(DataError, match="pneumoniamnist_64 has 64 pixels a side and no other size, not 128"):
        load_dataset(whole.name, size=128, data_root=tmp_path)


def test_what_is_neither_on_disk_nor_downloadable_is_named_with_the_way_out(tmp_path, monkeypatch):
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(DataError) as caught:
        load_dataset("organsmnist", size=64, data_root=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("organsmnist_64.npz", str(tmp_path), "refused", "by hand", "--data-root"):
        assert part in message


@pytest.mark.parametrize(
    ("name", "channels", "resolution", "sizes", "train_counts"),
    [
        ("pneumoniamnist", 1, 28, (4708, 524, 624), [1214, 3494]),
        ("bccd_32", 3, 32, (1226, 166, 357), [843, 164, 219]),
        ("colon_32", 3, 32, (3500, 500, 1500), [700] * 5),
        ("wbc_32", 3, 32, (209, 30, 60), [123, 37, 34, 15]),
    ],
)
def test_real_files_have_the_published_sizes(real_data, name, channels, resolution, sizes, train_counts):
    dataset = load_dataset(real_data / f"{name}.npz")
    assert (dataset.channels, dataset.resolution) == (channels, resolution)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == sizes
    assert np.bincount(dataset.train.labels).tolist() == train_counts
    assert load_dataset(name, data_root=real_data).fingerprint == dataset.fingerprint
