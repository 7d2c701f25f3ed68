"""A benchmark on a real cluster: cells in parallel, shared experts, resumed, with failures that stop nobody."""

import threading

import pyarrow.parquet as pq
import pytest

import ptm_ray as ptm
from ptm_ray.config.base import merge
from ptm_ray.errors import StoreError
from tests.files import write_dataset
from tests.processes import workers_named
from tests.small import SETTINGS, small_dataset

QUICK = merge(SETTINGS, {"outer_steps": 4, "overlap": {"enabled": False}})


def suite(folder, **changes):
    return {
        "name": "small",
        "datasets": ["small"],
        "ipc": [1, 2],
        "methods": ["ptm", "dm", "random", "full"],
        "seeds": 1,
        "equal_steps": 2,
        "settings": QUICK,
        **changes,
    }


def rows_of(out):
    return pq.read_table(out / "cells.parquet").to_pylist()


def cells_of(rows):
    return {(row["dataset"], row["ipc"], row["method"], row["seed"]) for row in rows}


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory):
    """A finished benchmark: its folder's root, and its result."""
    root = tmp_path_factory.mktemp("bench")
    write_dataset(root / "small.npz", small_dataset())
    result = ptm.bench(suite(root), out=root / "out", experts_dir=root / "experts", data_root=root)
    return root, result


def test_every_cell_is_in_the_table_with_its_cost(made):
    root, result = made
    rows = rows_of(root / "out")
    expected = {("small", ipc, method, 0) for ipc in (1, 2) for method in ("ptm", "dm", "random")}
    assert cells_of(rows) == expected | {("small", 0, "full", 0)}
    assert (result.cells, result.failed) == (7, 0)
    for row in rows:
        assert row["error"] is None
        assert 0 <= row["balanced_accuracy"] <= 1
        assert (row["experts_s"] > 0) == (row["method"] != "full")
        assert (row["buffer_bytes"] > 0) == (row["method"] != "full")
    learned = [row for row in rows if row["method"] in ("ptm", "dm")]
    assert {row["condition"] for row in learned} == {"unified", "published", "no-augmentation", "equal-steps"}
    assert {row["outer_steps"] for row in learned} == {4}


def test_experts_are_shared_by_methods_and_the_report_is_there(made):
    root, result = made
    assert len(list((root / "experts").glob("*/expert-*.arrow"))) == SETTINGS["experts"]["count"]
    text = result.report.read_text()
    assert all(f"| {method}" in text for method in ("ptm", "dm", "random"))
    assert (root / "out" / "accuracy-over-ipc.png").stat().st_size > 10_000
    assert not list((root / "out" / "work").glob("*"))


def test_the_same_call_again_runs_nothing_and_more_cells_run_alone(made):
    root, _ = made
    before = {str(row) for row in rows_of(root / "out")}
    ptm.bench(suite(root), out=root / "out", experts_dir=root / "experts", data_root=root)
    assert {str(row) for row in rows_of(root / "out")} == before
    more = suite(root, methods=["ptm", "dm", "random", "herding", "full"])
    result = ptm.bench(more, out=root / "out", experts_dir=root / "experts", data_root=root)
    after = {str(row) for row in rows_of(root / "out")}
    assert before < after
    assert result.cells == 9


def test_a_cell_is_run_again_once_its_settings_have_changed(made, tmp_path):
    root, _ = made
    out = tmp_path / "out"
    asked = suite(root, ipc=[1], methods=["ptm", "random"])
    ptm.bench(asked, out=out, experts_dir=root / "experts", data_root=root)
    changed = {**asked, "methods": {"ptm": {"outer_steps": 3}, "random": {}}}
    ptm.bench(changed, out=out, experts_dir=root / "experts", data_root=root)
    assert {row["outer_steps"] for row in rows_of(out) if row["method"] == "ptm"} == {3}


def test_a_dataset_that_is_missing_fails_alone_and_is_tried_again(made, tmp_path):
    root, _ = made
    asked = suite(root, datasets=["small", "gone"], ipc=[1], methods=["random", "full"])
    result = ptm.bench(asked, out=tmp_path / "out", experts_dir=root / "experts", data_root=root)
    assert (result.cells, result.failed) == (4, 2)
    errors = {(row["dataset"], row["method"]): row["error"] for row in rows_of(tmp_path / "out")}
    assert {key for key, error in errors.items() if error} == {("gone", "random"), ("gone", "full")}
    assert "gone" in errors["gone", "random"]
    assert "gone" in result.report.read_text()
    write_dataset(tmp_path / "gone.npz", small_dataset())
    write_dataset(tmp_path / "small.npz", small_dataset())
    again = ptm.bench(asked, out=tmp_path / "out", experts_dir=root / "experts", data_root=tmp_path)
    assert (again.cells, again.failed) == (4, 0)


def test_cells_that_can_not_be_or_come_to_nothing_stop_nobody(made, tmp_path):
    root, _ = made
    methods = {
        "random": {},
        "diverges": {"method": "mtt", "student": {"inner_lr": 1e9}, "images": {"max_skipped": 1}},
        "ptm": {},
    }
    asked = suite(root, ipc=[1, 50], methods=methods)
    result = ptm.bench(asked, out=tmp_path / "out", experts_dir=root / "experts", data_root=root)
    errors = {(row["ipc"], row["method"]): row["error"] for row in rows_of(tmp_path / "out")}
    # There are 40 images of a class.
    assert "ipc is 50" in errors[50, "random"]
    assert "skipped" in errors[1, "diverges"]
    assert errors[1, "ptm"] is errors[1, "random"] is None
    assert result.failed == 4


def test_a_cell_whose_process_is_killed_is_recorded_and_the_next_call_runs_it(made, tmp_path, wait_until):
    root, _ = made
    asked = suite(root, ipc=[1], methods={"ptm": {"outer_steps": 300}, "random": {}})
    where = {"out": tmp_path / "out", "experts_dir": root / "experts", "data_root": root}
    (tmp_path / "out").mkdir()

    def kill():
        wait_until(lambda: list((tmp_path / "out").glob("work/*-ptm-0-*")), 60)
        for process in workers_named("_run_cell"):
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = ptm.bench(asked, **where)
    killer.join()
    assert (result.cells, result.failed) == (2, 1)
    errors = {row["method"]: row["error"] for row in rows_of(tmp_path / "out")}
    assert "died" in errors["ptm"]
    assert ptm.bench({**asked, "methods": {"ptm": {"outer_steps": 4}, "random": {}}}, **where).failed == 0


def test_the_folder_of_another_suite_is_refused(made):
    root, _ = made
    before = (root / "out" / "cells.parquet").read_bytes()
    with pytest.raises(StoreError, match="suite is 'small' there, 'other' here") as caught:
        ptm.bench(suite(root, name="other"), out=root / "out", experts_dir=root / "experts", data_root=root)
    assert "\n" not in str(caught.value)
    assert (root / "out" / "cells.parquet").read_bytes() == before
