"""The main job on a real cluster, from images to an evaluated set on disk."""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import ptm_ray as ptm
from ptm_ray.config.base import merge
from ptm_ray.config.presets import METHODS
from ptm_ray.errors import ConfigError, DataError, StoreError
from ptm_ray.orchestrate import distill as on_ray
from tests.files import write_dataset
from tests.processes import workers_named
from tests.small import SETTINGS, InMemory, small_dataset, small_problem
from tests.stages.test_distill import distillation

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run: its folder, its result, the folder of its experts."""
    root = tmp_path_factory.mktemp("main-job")
    result = ptm.distill(small_dataset(), out=root / "run", experts_dir=root / "experts", **SETTINGS)
    return root / "run", result, root / "experts"


def test_scores_of_all_three_kinds_with_their_spread(made):
    _, result, _ = made
    assert list(result.scores) == ["synthetic", "random", "full"]
    # Seeds, draws, seeds.
    for kind, n in {"synthetic": 2, "random": 2, "full": 2}.items():
        found = result.scores[kind]["balanced_accuracy"]
        assert found["n"] == n
        assert 0 <= found["mean"] <= 1
        assert found["low"] <= found["mean"] <= found["high"]
        assert {f"recall_{label}" for label in range(3)} <= result.scores[kind].keys()
    assert result.cost["outer_steps"] == SETTINGS["outer_steps"]


def test_the_folder_holds_set_card_pictures_and_result(made):
    out, result, _ = made
    assert result.set == out / "set"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        *(f"set/{name}" for name in ("synthetic.parquet", "synthetic.npz", "recipe.json", "card.md", "grid.png")),
        *("run.json", "result.json", "cost.json", "checkpoint.pt", "curve.png", "report.html"),
    }
    for picture in (out / "set" / "grid.png", out / "curve.png"):
        shown = np.asarray(Image.open(picture).convert("L"))
        assert min(shown.shape) > 150
        assert shown.std() > 10
    page = Path(result.page).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert f"<td>{SETTINGS['outer_steps']}, of them 0 skipped</td>" in page
    assert f"<td>{100 * result.scores['full']['accuracy']['mean']:.1f} ±" in page
    held = json.loads((out / "result.json").read_text())
    assert held["scores"] == result.scores
    assert len(held["rows"]) == SETTINGS["outer_steps"]


def test_the_set_is_what_was_learned_and_says_how(made):
    out, result, _ = made
    kept = ptm.SyntheticSet.load(result.set)
    assert kept.images.shape == (6, 3, 16, 16)
    assert kept.labels.tolist() == [0, 0, 1, 1, 2, 2]
    recipe = kept.recipe
    assert recipe["dataset"]["fingerprint"] == small_dataset().fingerprint
    mean, std = (np.float64(recipe["normalisation"][key]).reshape(3) for key in ("mean", "std"))
    shown = np.clip(np.rint(255 * (kept.images.transpose(0, 2, 3, 1) * std + mean)), 0, 255)
    assert np.abs(shown - kept.pixels).max() <= 1
    card = (out / "set" / "card.md").read_text()
    assert "started from real training images" in card
    assert "no guarantee of privacy" in card


def test_the_same_call_again_goes_on_and_gives_the_same_set(made, tmp_path):
    out, result, experts = made
    before = (result.set / "synthetic.parquet").read_bytes()
    again = ptm.distill(small_dataset(), out=out, experts_dir=experts, workers=1, **SETTINGS)
    assert (again.set / "synthetic.parquet").read_bytes() == before
    assert again.scores == result.scores


def test_a_run_is_the_same_wherever_its_images_lie(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "cells.npz", small_dataset())
    how = {"out": tmp_path / "out", "experts_dir": made[2], "workers": 1, **SETTINGS, "outer_steps": 1}
    first = ptm.distill("cells.npz", **how)
    assert ptm.distill(ptm.load_dataset(tmp_path / "cells.npz"), **how).scores == first.scores
    assert "npz" not in (tmp_path / "out" / "run.json").read_text()


class Killer:
    """A watcher that kills all workers as the loss of their node would: at an outer step, and again at a later one."""

    def __init__(self):
        self.most, self.killed = 3, []

    def update(self, stage, done, total, words=""):
        if stage != "distilling" or done <= self.most or len(self.killed) == 2:
            return
        self.most, alive = done, workers_named("ray::Worker")
        # What was yielded before still comes after they are dead.
        if alive:
            self.killed.append(len(alive))
            for process in alive:
                process.kill()
            psutil.wait_procs(alive, timeout=20)


def test_a_run_outlives_the_loss_of_all_its_workers_at_once_and_again_later(made, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "TRIES", 2)
    settings, watcher = merge(SETTINGS, {"outer_steps": 80, "evaluation": {"compare_with": []}}), Killer()
    result = ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=made[2], watcher=watcher, **settings)
    assert watcher.killed[0] == 2
    assert len(watcher.killed) == 2
    problem = small_problem(**settings)
    whole = distillation(problem, tmp_path / "whole", trajectories=InMemory(problem))
    list(whole.run())
    assert np.array_equal(ptm.SyntheticSet.load(result.set).images, whole.result().images.numpy())


def test_another_run_is_refused_its_folder_and_nothing_is_lost(made):
    out, result, experts = made
    before = (result.set / "recipe.json").read_bytes()
    with pytest.raises(StoreError, match=r"another run \(config\.seed is 0 there, 1 here\)"):
        ptm.distill(small_dataset(), out=out, experts_dir=experts, **SETTINGS, seed=1)
    assert (result.set / "recipe.json").read_bytes() == before


def test_a_set_of_natural_frequencies_is_scored_and_its_card_says_that_it_is_real(ray_cluster, tmp_path):
    experts = tmp_path / "experts"
    settings = {**SETTINGS, "images": {"init": "real-natural"}, "outer_steps": 0}
    data = small_dataset()
    result = ptm.distill(data, out=tmp_path / "run", experts_dir=experts, workers=1, **settings)
    assert result.cost["outer_steps"] == 0
    # It looks at none, so none are trained.
    assert (result.cost["experts"], result.cost["buffer_bytes"], experts.exists()) == (0, 0, False)
    assert result.scores["synthetic"]["balanced_accuracy"]["n"] == 2
    kept = ptm.SyntheticSet.load(result.set)
    assert len(kept.labels) == 6
    for picture, label in zip(kept.pixels, kept.labels, strict=True):
        assert (data.train.images[data.train.labels == label] == picture).all((1, 2, 3)).any()
    card = (result.set / "card.md").read_text()
    assert "2 images per class on average" in card
    assert "are real training images** (`real-natural`), as they are" in card
    assert {"set", "curve.png", "result.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    again = ptm.distill(data, out=tmp_path / "run", experts_dir=experts, workers=1, **settings)
    assert again.scores == result.scores


def test_more_workers_than_cpus_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="9 workers asked for, but Ray has 2 CPUs"):
        ptm.distill(small_dataset(), out=tmp_path / "run", experts_dir=tmp_path, workers=9, **SETTINGS)


def test_any_set_is_evaluated_ours_or_anothers(made, tmp_path):
    _, result, _ = made
    data = small_dataset()
    learned = ptm.SyntheticSet.load(result.set)
    # As a set of datm, whose settings fit real images alone.
    learned.recipe["config"]["images"] |= METHODS["datm"]["images"]
    ours = ptm.evaluate(
        learned, data, networks=("convnet", "vit"), seeds=1, workers=1, evaluation={"steps": 3, "full_steps": 2}
    )
    assert list(ours["by_network"]) == ["convnet", "vit"]
    rows = np.concatenate([np.flatnonzero(data.train.labels == label)[:2] for label in range(3)])
    np.savez(tmp_path / "other.npz", train_images=data.train.images[rows], train_labels=data.train.labels[rows])
    quick = {"evaluation": {"steps": 5, "full_steps": 2, "random_draws": 1}, "network": SETTINGS["network"]}
    other = ptm.evaluate(tmp_path / "other.npz", data, seeds=2, workers=1, **quick)
    assert other["scores"]["synthetic"]["balanced_accuracy"]["n"] == 2


def test_of_a_set_whose_dataset_has_a_name_it_is_said_why_that_can_not_be_had(made):
    _, result, _ = made
    ours = ptm.SyntheticSet.load(result.set)
    ours.recipe["config"] |= {"data": "pathmnist", "size": 99}
    with pytest.raises(DataError, match="pathmnist has no size 99"):
        ptm.evaluate(ours)
