"""What `evaluate` scores, without a cluster: sets of every method, ours and another's, and by what they are found."""

import dataclasses

import numpy as np
import pytest

from ptm_ray.api import as_scored, distill, export, load_dataset
from ptm_ray.config.files import resolve
from ptm_ray.config.presets import METHODS
from ptm_ray.data.dataset import Split
from ptm_ray.errors import ConfigError, DataError
from ptm_ray.orchestrate.outcome import synthetic_set
from ptm_ray.stages.finished import Finished
from ptm_ray.stages.problem import Problem
from ptm_ray.store.artefact import SyntheticSet
from tests.files import picture, write_classes, write_dataset, write_npz
from tests.small import SETTINGS, small_dataset

SCORED_BY = {part: SETTINGS[part] for part in ("network", "evaluation")}


def a_set(**settings):
    """The first two images of each class, as a set that was made with these settings."""
    problem = Problem(small_dataset(), resolve(SCORED_BY, settings))
    data, seen_as = problem.dataset, problem.whitening
    rows = np.concatenate([np.flatnonzero(data.train.labels == label)[:2] for label in range(data.num_classes)])
    recipe = {
        "shape": [3, 16, 16],
        "soft_labels": False,
        "dataset": {"name": data.name, "class_names": list(data.class_names)},
        "normalisation": {
            "mean": seen_as.mean.tolist(),
            "std": seen_as.std.tolist(),
            "zca": problem.experts.zca,
        },
        "config": problem.config.model_dump(mode="json"),
    }
    pixels, labels = data.train.images[rows], data.train.labels[rows]
    zca = None if seen_as.zca is None else seen_as.zca.stored.numpy()
    return SyntheticSet(problem.normalise(pixels), pixels, labels, None, recipe, zca)


def darker(split):
    return Split(split.images // 2, split.labels)


def renamed(made, names):
    """The set's recipe, its classes called so."""
    return {**made.recipe, "dataset": {**made.recipe["dataset"], "class_names": list(names)}}


@pytest.mark.parametrize("method", METHODS)
def test_a_set_of_any_method_is_scored_as_it_was_made(method):
    made = a_set(method=method, mirror=False, images={"augment": False}, experts={"zca": method == "mtt"})
    problem, images, probabilities = as_scored(made, small_dataset(), networks=("vit",), seeds=4)
    asked = resolve(SCORED_BY)
    assert problem.config.network == asked.network
    assert problem.config.evaluation == asked.evaluation.replace(networks=("vit",), seeds=4)
    assert (problem.config.mirror, problem.config.images.augment) == (False, False)
    assert problem.config.experts.zca == (method == "mtt")
    assert np.array_equal(images, made.images)
    assert probabilities.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


def test_what_a_set_was_learned_by_says_nothing_about_how_it_is_scored():
    short = {"method": "mtt", "experts": {"snapshots": 1}, "schedule": {"length": 1}}
    problem, _, _ = as_scored(a_set(**short), small_dataset(), evaluation={"steps": 7})
    assert problem.config.evaluation.steps == 7


def test_pictures_of_another_are_read_as_large_as_the_datasets_images(tmp_path, monkeypatch):
    data = small_dataset()
    write_classes(tmp_path / "pictures", dict.fromkeys(data.class_names, 2), side=data.resolution)
    pixels = np.stack([picture(data.resolution, seed=seed) for _ in data.class_names for seed in (0, 1)])
    problem, images, _ = as_scored(tmp_path / "pictures", data)
    assert np.array_equal(images, problem.normalise(pixels))
    # In the user's own folder too, as the shell leaves it after an equals sign.
    monkeypatch.setenv("HOME", str(tmp_path))
    assert np.array_equal(as_scored("~/pictures", data)[1], images)


def test_a_set_of_another_is_scored_on_a_dataset_of_few_images(tmp_path):
    # Four training images of a class, which are fewer than a distillation would ask for by default.
    few = write_npz(tmp_path / "few.npz")
    images, labels = np.full((3, 16, 16), 100, np.uint8), np.arange(3)
    theirs = write_npz(tmp_path / "theirs.npz", train_images=images, train_labels=labels)
    problem, images, _ = as_scored(theirs, few)
    assert (problem.config.ipc, len(images)) == (1, 3)


def test_beside_a_set_of_unequal_classes_stand_as_many_random_images_in_all(tmp_path):
    data = small_dataset()
    write_classes(tmp_path, dict(zip(data.class_names, (7, 1, 1), strict=True)), side=data.resolution)
    problem, images, _ = as_scored(tmp_path, data)
    assert (len(images), problem.config.ipc) == (9, 3)


@pytest.mark.parametrize("minutes", [0, -1.5])
def test_no_time_is_no_way_to_be_handed_the_real_images_as_a_set(tmp_path, minutes):
    with pytest.raises(ConfigError, match=f"budget_minutes must be above 0, got {minutes:g}"):
        distill(small_dataset(), out=tmp_path / "out", budget_minutes=minutes)
    assert not (tmp_path / "out").exists()


def test_classes_are_those_of_the_same_names_in_whatever_order(tmp_path):
    data, made = small_dataset(), a_set()
    _, _, expected = as_scored(made, data)
    turned = dataclasses.replace(made, labels=2 - made.labels, recipe=renamed(made, data.class_names[::-1]))
    assert np.array_equal(as_scored(turned, data)[2], expected)
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 6).astype(np.float32)
    learned = dataclasses.replace(turned, soft_labels=soft[:, ::-1])
    assert np.array_equal(as_scored(learned, data)[2], soft)
    # Another's, whose readers number classes alphabetically.
    write_classes(tmp_path, dict.fromkeys(data.class_names, 2))
    backwards = dataclasses.replace(data, class_names=sorted(data.class_names, reverse=True))
    assert as_scored(tmp_path, backwards)[2].argmax(1).tolist() == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize("names", [("a", "b", "c"), ("0", "1", "2")])
def test_classes_of_other_names_or_of_none_are_those_of_the_same_numbers(names):
    data, made = small_dataset(), a_set()
    other = dataclasses.replace(made, recipe=renamed(made, names))
    for known in (data, dataclasses.replace(data, class_names=("2", "1", "0"))):
        assert as_scored(other, known)[2].argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("zca", [False, True])
def test_networks_are_tested_by_the_normalisation_that_they_are_trained_by(zca, tmp_path):
    a_set(experts={"zca": zca}).save(tmp_path)
    made, data = SyntheticSet.load(tmp_path), small_dataset()
    dark = dataclasses.replace(data, **{part: darker(getattr(data, part)) for part in ("train", "val", "test")})
    for problem in (as_scored(made, dark)[0], as_scored(made, dark)[0].on("meta").on("cpu")):
        for part in ("train", "test"):
            seen, _ = problem.tensors(part)
            assert np.array_equal(seen, made.normalise(getattr(dark, part).images))
    # Of the set's own dataset they are to the bit what they were while it was made.
    own = Problem(data, resolve(SCORED_BY, {"experts": {"zca": zca}}))
    assert np.array_equal(as_scored(made, data)[0].tensors("test")[0], own.tensors("test")[0])


def finished(data, dataset, **settings):
    """The artefact of a distillation that was asked for by this name or path."""
    problem = Problem(dataset, resolve(SCORED_BY, settings, {"data": str(data)}))
    labels = np.arange(dataset.num_classes)
    images = problem.normalise(dataset.train.images[: dataset.num_classes])
    found = Finished(
        images=images,
        classes=labels,
        labels=np.eye(len(labels)),
        soft=False,
        inner_lr={"progressive": 0.01},
        rows=[],
        cycles=[],
        validation=[(3, 0.5)],
        kept_step=3,
        kept_score=0.5,
        elapsed_s=1.0,
        peak_memory_bytes=0,
    )
    return synthetic_set(problem, found, {"total_s": 1.0})


def test_a_set_says_nothing_of_where_its_images_lay(tmp_path):
    secret = tmp_path / "patients_2024"
    secret.mkdir()
    path = write_dataset(secret / "scans.npz", small_dataset())
    finished(path, load_dataset(path)).save(tmp_path / "set")
    for form in ("pictures", "hub"):
        export(tmp_path / "set", tmp_path / form, form)
    files = [file for part in ("set", "pictures", "hub") for file in (tmp_path / part).rglob("*") if file.is_file()]
    assert len(files) > 6
    assert not [file for file in files if b"patients_2024" in file.read_bytes() or b".npz" in file.read_bytes()]
    kept = SyntheticSet.load(tmp_path / "set")
    assert kept.recipe["config"]["data"] == "scans"
    with pytest.raises(DataError, match="the set was made from 'scans', which is no dataset by name; pass --data"):
        as_scored(kept)
    # Where the file lies under its name, that is enough.
    assert as_scored(kept, data_root=secret)[0].dataset.fingerprint == small_dataset().fingerprint


@pytest.mark.parametrize("settings", [{"method": "dm"}, {"method": "random"}], ids=str)
def test_an_inner_lr_that_nothing_moved_is_not_called_learned(settings):
    made, learned = (finished("small", small_dataset(), **own) for own in (settings, {}))
    assert (made.recipe["inner_lr"], learned.recipe["inner_lr"]) == (None, {"progressive": 0.01})


def test_a_dataset_with_a_name_of_its_own_is_found_again_by_it():
    made = finished("cellphantom", load_dataset("cellphantom"))
    assert as_scored(made)[0].dataset.name == "cellphantom"
    larger = finished("pathmnist", dataclasses.replace(small_dataset(), name="pathmnist_64"), size=64)
    assert [larger.recipe["config"][key] for key in ("data", "size")] == ["pathmnist", 64]
