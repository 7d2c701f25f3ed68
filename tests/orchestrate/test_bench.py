"""A benchmark on a real cluster: cells in parallel, shared experts, resumed, with failures that stop nobody."""

import json
import shutil
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

import ptm_ray as ptm
from ptm_ray.config.base import merge
from ptm_ray.errors import ConfigError, StoreError
from ptm_ray.stages.provenance import code_digest, processor
from tests.files import write_dataset
from tests.processes import workers_named
from tests.small import SETTINGS, small_dataset

SUITE = {
    "name": "small",
    "datasets": ["small"],
    "ipc": [1],
    "methods": ["ptm", "dm", "random", "full"],
    "seeds": 1,
    "equal_steps": 2,
    "settings": merge(SETTINGS, {"outer_steps": 4}),
}


def bench(root, out, only=(), gpus=0.0, workers=None, watcher=None, **changes):
    places = {"out": out, "experts_dir": root / "experts", "data_root": root}
    how = {"gpus_per_worker": gpus, "workers": workers, "watcher": watcher}
    return ptm.bench({**SUITE, **changes}, **places, **how, only=only)


def rows_of(out):
    return pq.read_table(out / "cells.parquet").to_pylist()


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory):
    """A finished benchmark in `out`, its experts and dataset beside it: their folder, and the result."""
    root = tmp_path_factory.mktemp("bench")
    write_dataset(root / "small.npz", small_dataset())
    return root, bench(root, root / "out")


@pytest.fixture
def copied(made, tmp_path):
    """The same, for a test of its own to go on with."""
    root, _ = made
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_cell_is_in_the_table_with_its_cost(made):
    root, result = made
    rows = rows_of(root / "out")
    assert {(row["dataset"], row["ipc"], row["method"], row["seed"]) for row in rows} == {
        ("small", 1, "ptm", 0),
        ("small", 1, "dm", 0),
        ("small", 1, "random", 0),
        ("small", 0, "full", 0),
    }
    assert (result.cells, result.failed) == (4, 0)
    for row in rows:
        assert row["error"] is None
        assert 0 <= row["balanced_accuracy"] <= 1
        asks = row["method"] not in ("random", "full")
        assert (row["experts_s"] > 0, row["buffer_bytes"] > 0, row["experts"] is not None) == (asks, asks, asks)
    learned = [row for row in rows if row["method"] in ("ptm", "dm")]
    assert {row["condition"] for row in learned} == {"unified", "published", "no-augmentation", "equal-steps"}
    assert {row["outer_steps"] for row in learned} == {4}


def test_rows_say_what_made_them_and_those_of_other_settings_are_named(copied):
    rows = rows_of(copied / "out")
    assert {(row["code"], row["processor"]) for row in rows} == {(code_digest(), processor("cpu"))}
    report = (copied / "out" / "results.md").read_text()
    assert "Rows are of 1 state of the code, on 1 kind of processor" in report
    assert "than the suite asks for now" not in report
    bench(copied, copied / "out", only=["random"], settings=merge(SUITE["settings"], {"evaluation": {"steps": 6}}))
    report = (copied / "out" / "results.md").read_text()
    assert "**3 runs are of other settings, images or version than the suite asks for now** (dm, full, ptm)" in report


def test_experts_are_shared_by_methods_and_the_report_is_there(made):
    root, result = made
    assert len(list((root / "experts").glob("*/expert-*.arrow"))) == SETTINGS["experts"]["count"]
    text = result.report.read_text()
    assert all(method in text for method in ("ptm", "dm", "random"))
    assert (root / "out" / "accuracy-against-cost.png").stat().st_size > 10_000
    assert not list((root / "out" / "work").glob("*"))


def test_the_same_call_again_runs_nothing_and_more_cells_run_alone(copied):
    out = copied / "out"
    before = {str(row) for row in rows_of(out)}
    assert bench(copied, out).cells == 4
    assert {str(row) for row in rows_of(out)} == before
    more = {"methods": ["ptm", "mtt", "dm", "random", "herding", "full"]}
    again = bench(copied, out, **more, only=["ptm", "herding"])
    assert again.cells == 2
    added = {str(row) for row in rows_of(out)} - before
    assert before < {str(row) for row in rows_of(out)}
    assert {row["method"] for row in rows_of(out) if str(row) in added} == {"herding"}
    assert "dm" in again.report.read_text()


def test_a_cell_is_run_again_once_its_settings_have_changed(copied):
    out = copied / "out"
    before = {str(row) for row in rows_of(out) if row["method"] != "ptm"}
    changed = {"method": "ptm", "outer_steps": 3}
    fewer = {**changed, "experts": {"count": 1}}
    bench(copied, out, methods={"ptm": changed, "fewer": fewer, "dm": {}, "random": {}, "full": {}})
    assert {str(row) for row in rows_of(out) if row["method"] not in ("ptm", "fewer")} == before
    again, of_one = ([row for row in rows_of(out) if row["method"] == method] for method in ("ptm", "fewer"))
    assert {row["outer_steps"] for row in again} == {3}
    # What its experts took is remembered though they were there.
    assert {row["experts_s"] for row in again} == {row["experts_s"] for row in rows_of(out) if row["method"] == "dm"}
    assert again[0]["experts_s"] == 2 * of_one[0]["experts_s"] > 0
    # Of those that share experts each matches as many as it asks for.
    assert again[0]["buffer_bytes"] == 2 * of_one[0]["buffer_bytes"]
    assert [row["calibration_error"] for row in again] != [row["calibration_error"] for row in of_one]


def test_a_dataset_that_is_missing_fails_alone_and_is_tried_again(copied):
    out, asked = copied / "out", {"datasets": ["small", "gone"], "methods": ["random", "full"]}
    result = bench(copied, out, **asked)
    assert (result.cells, result.failed) == (4, 2)
    errors = {(row["dataset"], row["method"]): row["error"] for row in rows_of(out) if row["error"]}
    assert errors.keys() == {("gone", "random"), ("gone", "full")}
    assert "unknown dataset 'gone'" in errors["gone", "random"]
    assert "unknown dataset 'gone'" in result.report.read_text()
    write_dataset(copied / "gone.npz", small_dataset())
    assert bench(copied, out, **asked).failed == 0


def test_what_is_finished_outlives_its_images_but_not_settings_that_can_not_be(copied, caplog):
    out = copied / "out"
    before = rows_of(out)
    methods = {"ptm": {}, "dm": {"network": {"depth": 9}}, "random": {}, "full": {}}
    assert bench(copied, out, methods=methods, only=["dm"]).failed == 1
    (refused,) = (row for row in rows_of(out) if row["method"] == "dm")
    assert "depth" in refused["error"]
    (copied / "small.npz").unlink()
    result = bench(copied, out)
    assert (result.cells, result.failed) == (4, 4)
    assert "small-ipc1-random-0 failed: unknown dataset 'small'" in caplog.text
    assert [row for row in rows_of(out) if row["method"] != "dm"] == [row for row in before if row["method"] != "dm"]


def test_cells_that_can_not_be_or_come_to_nothing_stop_nobody(copied):
    diverges = {"method": "mtt", "student": {"inner_lr": 1e9}, "images": {"max_skipped": 1}}
    result = bench(copied, copied / "out", ipc=[1, 50], methods={"ptm": {}, "diverges": diverges})
    errors = {(row["ipc"], row["method"]): row["error"] for row in rows_of(copied / "out")}
    # There are 40 images of a class.
    assert "ipc is 50" in errors[50, "ptm"]
    assert "updates in a row were skipped" in errors[1, "diverges"]
    assert errors[1, "ptm"] is None
    assert result.failed == 3


def test_a_cell_whose_process_is_killed_is_recorded_and_run_by_the_next_call(copied, wait_until):
    out = copied / "out"

    def kill():
        wait_until(lambda: list(out.glob("work/*-long-0-*")), 60)
        for process in workers_named("cell_task"):
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = bench(copied, out, methods={"ptm": {}, "long": {"method": "mtt", "outer_steps": 5000}})
    killer.join()
    assert (result.cells, result.failed) == (2, 1)
    assert "died" in next(row["error"] for row in rows_of(out) if row["method"] == "long")
    assert bench(copied, out, methods={"ptm": {}, "long": {"method": "mtt", "outer_steps": 2}}).failed == 0


class Interrupting:
    """A watcher that interrupts a stage, as Ctrl-C would, once `when` is true."""

    def __init__(self, stage, when):
        self._stage, self._when = stage, when

    def update(self, stage, done, total, words=""):
        if stage == self._stage and self._when(done):
            raise KeyboardInterrupt


def test_what_experts_took_is_known_though_the_call_that_trained_the_first_was_interrupted(copied):
    shutil.rmtree(copied / "experts")
    out, methods = copied / "other", {"methods": ["ptm"]}
    with pytest.raises(KeyboardInterrupt):
        bench(copied, out, workers=1, watcher=Interrupting("experts", lambda done: done > 1), **methods)
    assert len(list((copied / "experts").glob("*/expert-*.sha256"))) == 1
    bench(copied, out, workers=1, **methods)
    (held,) = json.loads((out / "experts.json").read_text()).values()
    assert held["count"] == 2
    assert {row["experts_s"] for row in rows_of(out)} == {held["seconds"]}


def test_cells_end_where_they_are_interrupted_though_ray_stays(copied, wait_until):
    watcher = Interrupting("cells", lambda done: wait_until(lambda: workers_named("cell_task"), 60))
    methods = {"methods": {"ptm": {}, "long": {"method": "mtt", "outer_steps": 100_000}}}
    with pytest.raises(KeyboardInterrupt):
        bench(copied, copied / "out", watcher=watcher, **methods)
    wait_until(lambda: not workers_named("cell_task"), 30)


def test_a_method_of_one_s_own_is_scored_as_others_are_and_what_is_wrong_with_its_sets_is_said(made, tmp_path):
    root, _ = made
    small = small_dataset()
    rows = [int((small.train.labels == label).argmax()) for label in range(3)]
    images, labels = small.train.images[rows], small.train.labels[rows]
    np.savez(tmp_path / "mine-0.npz", train_images=images, train_labels=labels)
    np.savez(tmp_path / "more-0.npz", train_images=np.tile(images, (2, 1, 1, 1)), train_labels=np.tile(labels, 2))
    methods = {name: {"sets": f"{tmp_path}/{name}-{{seed}}.npz"} for name in ("mine", "more", "gone")}
    result = bench(root, tmp_path / "out", methods=methods)
    before = rows_of(tmp_path / "out")
    assert (result.cells, result.failed) == (3, 2)
    errors = {row["method"]: row["error"] for row in before if row["error"]}
    assert "has 6 images, but ipc 1 is 3" in errors["more"]
    assert "no synthetic set" in errors["gone"]
    tested = [row for row in before if not row["error"]]
    assert {(row["method"], row["condition"]) for row in tested} == {("mine", "unified"), ("mine", "no-augmentation")}
    assert {(row["outer_steps"], row["experts"], row["buffer_bytes"]) for row in tested} == {(0, None, 0)}
    assert "| mine | given |" in result.report.read_text()
    # Its sets are what the cells are of: others are scored again, these are not.
    bench(root, tmp_path / "out", methods=methods)
    assert rows_of(tmp_path / "out") == before
    np.savez(tmp_path / "mine-0.npz", train_images=255 - images, train_labels=labels)
    bench(root, tmp_path / "out", methods=methods, only=["mine"])
    assert {row["fingerprint"] for row in rows_of(tmp_path / "out")} != {row["fingerprint"] for row in before}


def test_a_method_that_the_suite_lacks_is_refused(made):
    root, _ = made
    with pytest.raises(ConfigError, match="suite small has no method 'pmt'; did you mean 'ptm'"):
        bench(root, root / "out", only=["pmt"])


def test_gpus_that_ray_has_not_are_refused_and_nothing_is_lost(copied):
    before = (copied / "out" / "cells.parquet").read_bytes()
    with pytest.raises(ConfigError, match=r"0\.5 of a GPU each asked for, but Ray has 0 GPUs"):
        bench(copied, copied / "out", gpus=0.5, ipc=[2])
    assert (copied / "out" / "cells.parquet").read_bytes() == before


def test_the_folder_of_another_suite_is_refused(made):
    root, _ = made
    before = (root / "out" / "cells.parquet").read_bytes()
    with pytest.raises(StoreError, match="suite is 'small' there, 'other' here") as caught:
        bench(root, root / "out", name="other")
    assert "\n" not in str(caught.value)
    assert (root / "out" / "cells.parquet").read_bytes() == before
