"""What a person sees: scores as percent, a card that warns, pictures that show the set."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ptm_ray.report.card import TEN_LINES, inner_lr, started_from
from ptm_ray.report.figures import curve, grid
from ptm_ray.report.tables import markdown, recalls
from ptm_ray.store.artefact import SyntheticSet

NAMES = ["benign", "malignant"]
SUMMARY = {"mean": 0.8126, "std": 0.0249, "n": 3}
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "calibration_error", "recall_0", "recall_1")
SCORES = {kind: dict.fromkeys(METRICS, SUMMARY) for kind in ("synthetic", "random", "full")}


def painted(ipc=3, channels=3):
    """Class 0 black, class 1 white."""
    labels = np.repeat([0, 1], ipc)
    pixels = np.broadcast_to((255 * labels)[:, None, None, None], (2 * ipc, 8, 8, channels)).astype(np.uint8)
    recipe = {"dataset": {"class_names": NAMES}}
    return SyntheticSet(np.zeros((2 * ipc, channels, 8, 8), np.float32), pixels, labels, None, recipe)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_shows_a_row_for_each_class(tmp_path, channels):
    grid(painted(channels=channels), tmp_path / "grid.png")
    shown = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    height, width = shown.shape
    assert (shown[: height // 2] < 10).mean() > 0.25
    assert (shown[height // 2 + 5 :, width // 2 :] > 245).mean() > 0.9


def test_at_most_ten_images_of_a_class_are_shown(tmp_path):
    for ipc in (10, 40):
        grid(painted(ipc), tmp_path / f"{ipc}.png")
    assert Image.open(tmp_path / "10.png").size == Image.open(tmp_path / "40.png").size


def test_the_curve_is_drawn_for_a_run_of_one_step_without_overlap(tmp_path):
    row = {"outer_step": 0, "loss": 0.9, "start": 0, "end": 1, "overlap": None}
    result = {"rows": [row], "validation": [], "cycles": [], "kept_outer_step": 0}
    curve(result, tmp_path / "curve.png")
    assert np.asarray(Image.open(tmp_path / "curve.png").convert("L")).std() > 5


def test_scores_are_percent_with_their_spread():
    lines = markdown(SCORES).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| synthetic | 81.3 ± 2.5 |")
    assert "| malignant | 81.3 ± 2.5 |" in recalls(SCORES, NAMES)
    alone = {**SUMMARY, "std": 0.0, "n": 1}
    assert markdown({"full": dict.fromkeys(METRICS, alone)}).splitlines()[2].startswith("| full data | 81.3 | 81.3 |")


@pytest.mark.parametrize("soft", [False, True])
def test_the_cards_ten_lines_train_on_the_labels_that_the_set_has(tmp_path, monkeypatch, soft):
    shares = np.full((6, 2), 0.5, np.float32) if soft else None
    normalisation = {"mean": [0.5] * 3, "std": [0.25] * 3, "zca": False}
    recipe = {**painted().recipe, "shape": [3, 8, 8], "soft_labels": soft, "normalisation": normalisation}
    made = replace(painted(), soft_labels=shares, recipe=recipe)
    made.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = TEN_LINES.format(classes=2, lr=0.01, steps=3).splitlines()
    names = {"pixels": made.pixels}
    exec("\n".join(lines[1:-1]), names)
    assert names["labels"].tolist() == made.probabilities.tolist()
    assert names["predicted"].shape == (6,)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_on_using_a_set_trains_on_one_without_this_package(tmp_path, monkeypatch, pytestconfig, channels):
    page = (pytestconfig.rootpath / "docs" / "using-a-set.md").read_text()
    block = page.split("```python\n")[1].split("```")[0]
    assert "ptm_ray" not in block
    draw = np.random.default_rng(0)
    # One class dark, the other bright.
    labels = np.arange(8) % 2
    pixels = (draw.integers(0, 60, (8, 16, 16, channels)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    recipe = {
        **painted().recipe,
        "shape": [channels, 16, 16],
        "soft_labels": False,
        "normalisation": {"mean": [0.4] * channels, "std": [0.3] * channels, "zca": False},
        "augmentation": ["flip", "crop"],
        "config": {"evaluation": {"steps": 30, "lr": 0.01, "batch_size": 64}},
    }
    images = ((pixels / 255 - 0.4) / 0.3).transpose(0, 3, 1, 2).astype(np.float32)
    SyntheticSet(images, pixels, labels, None, recipe).save(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    torch.manual_seed(0)
    exec(block, names)
    others = (draw.integers(0, 60, (8, 16, 16, channels)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    assert names["predict"](others if channels == 3 else others[..., 0]).tolist() == labels.tolist()


def test_a_class_of_which_nothing_was_tested_has_a_dash_for_its_recall():
    lacking = {kind: {name: one for name, one in row.items() if name != "recall_1"} for kind, row in SCORES.items()}
    shown = recalls(lacking, NAMES).splitlines()
    assert shown[2] == "| benign | 81.3 ± 2.5 | 81.3 ± 2.5 | 81.3 ± 2.5 |"
    assert shown[3] == "| malignant | – | – | – |"


def test_the_card_says_how_the_set_began_and_warns_of_real_images():
    for init in ("real", "real-resampled", "k-means"):
        assert "Warning: the images were started from real training images" in started_from(init, 7)
        assert "Warning: the images are real training images" in started_from(init, 0)
    for outer_step in (0, 7):
        assert "Gaussian noise" in started_from("noise", outer_step)
        assert "Warning" not in started_from("noise", outer_step)


def test_the_curve_is_drawn_for_a_run_without_outer_steps(tmp_path):
    scored = [{"outer_step": 0, "balanced_accuracy": 0.5}]
    curve({"rows": [], "validation": scored, "cycles": [], "kept_outer_step": 0}, tmp_path / "curve.png")
    assert np.asarray(Image.open(tmp_path / "curve.png").convert("L")).std() > 5


def test_a_class_without_images_has_an_empty_row_in_the_grid(tmp_path):
    whole = painted()
    keep = whole.labels == 1
    made = SyntheticSet(whole.images[keep], whole.pixels[keep], whole.labels[keep], None, whole.recipe)
    grid(made, tmp_path / "grid.png")
    shown = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    grid(whole, tmp_path / "whole.png")
    assert shown.shape == np.asarray(Image.open(tmp_path / "whole.png").convert("L")).shape
    assert (shown[: shown.shape[0] // 2] < 10).mean() < 0.05


def test_the_card_calls_an_inner_lr_learned_where_one_was():
    found = {"progressive": 0.02, "random_first": 0.01234567}
    assert inner_lr({"inner_lr": found}) == ", learned inner lr (progressive 0.02, random first 0.01235)"
    assert inner_lr({"inner_lr": None}) == ""
