"""The synthetic set as others get it: by our class, by Hugging Face datasets, by code written for MedMNIST."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch

from ptm_ray.core.whitening import fit
from ptm_ray.data.load import load_training_images
from ptm_ray.errors import StoreError
from ptm_ray.store.artefact import SyntheticSet

NAMES = ["basophil", "monocyte", "platelet"]


def made(channels=3, soft=False, zca=None):
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 2)
    pixels = draw.integers(0, 256, (6, 12, 12, channels), dtype=np.uint8)
    images = draw.normal(size=(6, channels, 12, 12)).astype(np.float32)
    weights = draw.random((6, 3)).astype(np.float32)
    recipe = {
        "shape": [channels, 12, 12],
        "soft_labels": soft,
        "dataset": {"class_names": NAMES},
        "inner_lr": {"progressive": 0.02, "random_first": 0.01, "random_last": 0.03},
        "normalisation": {"mean": [0.5] * channels, "std": [0.25] * channels, "zca": zca is not None},
    }
    soft_labels = weights / weights.sum(1, keepdims=True) if soft else None
    return SyntheticSet(images, pixels, labels, soft_labels, recipe, zca)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_a_set_comes_back_exactly(tmp_path, channels, soft):
    saved = made(channels, soft)
    saved.save(tmp_path)
    read = SyntheticSet.load(tmp_path)
    for name in ("images", "pixels", "labels", "soft_labels"):
        np.testing.assert_array_equal(getattr(read, name), getattr(saved, name))
    assert read.recipe == saved.recipe
    assert read.images.dtype == np.float32


@pytest.mark.parametrize("channels", [1, 3])
def test_hugging_face_datasets_shows_pictures_and_names(tmp_path, channels):
    saved = made(channels, soft=True)
    saved.save(tmp_path / "set")
    files = str(tmp_path / "set" / "synthetic.parquet")
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == NAMES
    for row, pixels, images in zip(table, saved.pixels, saved.images, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]).reshape(pixels.shape), pixels)
        np.testing.assert_array_equal(np.float32(row["pixels"]).reshape(images.shape), images)
    np.testing.assert_allclose(table["soft_label"], saved.soft_labels, rtol=0, atol=0)


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 12, 12)), (3, (6, 12, 12, 3))])
def test_code_for_medmnist_finds_its_keys_and_shapes(tmp_path, channels, shape):
    made(channels).save(tmp_path)
    with np.load(tmp_path / "synthetic.npz", allow_pickle=False) as file:
        assert file["train_images"].shape == shape
        assert file["train_images"].dtype == np.uint8
        assert file["train_labels"].shape == (6, 1)


@pytest.mark.parametrize(("classes", "kind"), [(256, np.uint8), (257, np.uint16)])
def test_every_label_fits_into_the_npz(tmp_path, classes, kind):
    few = made()
    names = [f"class {label}" for label in range(classes)]
    many = replace(few, labels=few.labels + classes - 3, recipe={**few.recipe, "dataset": {"class_names": names}})
    many.save(tmp_path)
    with np.load(tmp_path / "synthetic.npz") as file:
        assert file["train_labels"].dtype == kind
        assert file["train_labels"][:, 0].tolist() == many.labels.tolist()


def test_our_own_readers_take_both_files_as_a_set(tmp_path):
    saved = made()
    saved.save(tmp_path)
    for name in ("synthetic.npz", "synthetic.parquet"):
        split, names = load_training_images(tmp_path / name, 12)
        np.testing.assert_array_equal(split.images, saved.pixels)
        np.testing.assert_array_equal(split.labels, saved.labels)
        assert len(names) == 3
    assert load_training_images(tmp_path / "synthetic.npz")[1] == tuple(NAMES)


@pytest.mark.parametrize("name", ["recipe.json", "synthetic.parquet"])
def test_a_missing_or_damaged_file_is_named(tmp_path, name):
    made().save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match="damaged"):
        SyntheticSet.load(tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match=name):
        SyntheticSet.load(tmp_path)


def test_a_set_of_a_later_format_is_refused(tmp_path):
    made().save(tmp_path)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(StoreError, match="has format 2, this version reads 1; update ptm-ray"):
        SyntheticSet.load(tmp_path)


def test_the_recipe_is_plain_json(tmp_path):
    made().save(tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["inner_lr"]["progressive"] == 0.02


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_ones_own_are_normalised_as_the_set_was(tmp_path, channels):
    pixels = made(channels).pixels
    ours = made(channels).normalise(pixels[..., 0] if channels == 1 else pixels)
    np.testing.assert_allclose(ours, (pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


def test_whitening_of_whole_images_travels_with_the_set(tmp_path):
    images = torch.tensor(made().pixels)
    known = fit(images, zca=True)
    saved = made(zca=known.zca.stored.numpy())
    saved.recipe["normalisation"].update(mean=known.mean.tolist(), std=known.std.tolist())
    saved.save(tmp_path)
    read = SyntheticSet.load(tmp_path)
    np.testing.assert_allclose(read.normalise(saved.pixels), known.forward(images).numpy(), rtol=1e-5, atol=1e-5)


def test_a_whitening_without_its_average_is_refused(tmp_path):
    saved = made(zca=fit(torch.tensor(made().pixels), zca=True).zca.matrix.numpy())
    saved.save(tmp_path)
    with pytest.raises(StoreError, match=r"zca\.npy has the shape"):
        SyntheticSet.load(tmp_path)
