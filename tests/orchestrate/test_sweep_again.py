"""Sweeps that outlive what began them: a killed driver, another machine; and folders that hold none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

import ptm_ray as ptm
from ptm_ray.config.base import merge
from ptm_ray.config.sweep import SweepConfig
from ptm_ray.errors import PtmError
from ptm_ray.orchestrate.sweep import _row
from ptm_ray.store.places import Place
from tests.files import write_dataset
from tests.processes import assert_says_that_it_was_interrupted, environment_without_ray, interruptible_command
from tests.small import SETTINGS, small_dataset

GRID = {"searcher": "grid", "settings": merge(SETTINGS, {"evaluation": {"compare_with": []}})}

SMALL_TOML = """
searcher = "grid"
[settings]
data = "cells.npz"
ipc = 2
outer_steps = 60
network = { width = 8, depth = 2 }
experts = { count = 2, steps = 20, snapshots = 5 }
[settings.evaluation]
seeds = 1
random_draws = 1
steps = 5
full_steps = 5
compare_with = []
validate_every = 4
validation_networks = 1
validation_steps = 20
[space]
seed = [1]
"""


def test_a_killed_driver_goes_on_with_resume(ray_cluster, tmp_path, wait_until):
    write_dataset(tmp_path / "cells.npz", small_dataset())
    (tmp_path / "sweep.toml").write_text(SMALL_TOML)
    command = Path(sys.executable).with_name("ptm-ray")
    env = {**environment_without_ray(), "RAY_ADDRESS": ray_cluster["address"]}
    first = subprocess.Popen(
        [command, "sweep", "sweep.toml", "--out", "out", "--experts-dir", "experts", "--workers", "1"],
        cwd=tmp_path,
        env=env,
    )
    wait_until(lambda: list((tmp_path / "out").glob("tune/trials/trial-*/checkpoint_*/checkpoint.pt")), 200)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    # The folder tells the images' name, but not where they lie, and they are found elsewhere.
    assert ".npz" not in (tmp_path / "out" / "run.json").read_text()
    (tmp_path / "moved").mkdir()
    (tmp_path / "cells.npz").rename(tmp_path / "moved" / "cells.npz")
    words = [command, "sweep", "--resume", "--out", "out", "--experts-dir", "experts", "--workers", "1", "--json"]
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 280}
    lost = subprocess.run(words, **how)
    assert lost.returncode != 0
    assert "out holds a sweep of 'cells', which is no dataset by name; pass --data" in lost.stderr
    again = subprocess.run([*words, "--data", "moved/cells.npz"], **how)
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout.splitlines()[-1])
    assert said["trials"] == 1
    assert said["failed"] == 0
    assert {row["outer_step"] for row in pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()} == {60}
    assert ptm.SyntheticSet.load(tmp_path / said["best"]["set"]).images.shape[0] == 6


def test_an_interrupted_sweep_says_so_and_exports_nothing(ray_cluster, tmp_path, wait_until):
    write_dataset(tmp_path / "cells.npz", small_dataset())
    (tmp_path / "sweep.toml").write_text(SMALL_TOML.replace("outer_steps = 60", "outer_steps = 100000"))
    words = ("sweep", "sweep.toml", "--out", "out", "--experts-dir", "experts", "--workers", "1")
    command = interruptible_command(words, tmp_path, ray_cluster["address"])
    wait_until(lambda: list((tmp_path / "out").glob("tune/trials/trial-*/checkpoint_*/checkpoint.pt")), 200)
    command.send_signal(signal.SIGINT)
    assert_says_that_it_was_interrupted(command)
    assert not (tmp_path / "out" / "best").exists()


def test_a_trial_that_never_started_is_in_the_table_without_its_settings():
    asked = SweepConfig.of({**GRID, "space": {"seed": [1]}})
    row = _row(asked, SimpleNamespace(metrics=None, config=None, error=RuntimeError("died")))
    assert (row["seed"], row["outer_step"], row["error"]) == (None, None, "died")


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    from ptm_ray.cli import sweep as command

    for argv, words in (
        (["--resume", "--out", str(tmp_path)], "holds no sweep"),
        (["--resume"], "name it with --out"),
        (["asked.toml", "--resume", "--out", str(tmp_path)], "as was asked for then; leave asked.toml out"),
        ([], "no sweep file given"),
        (["missing.toml"], "no settings file missing.toml"),
    ):
        with pytest.raises(PtmError, match=words):
            command.main(argv)


def test_a_sweep_into_a_bucket_leaves_nothing_it_needs_on_this_machine(ray_cluster, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("PTM_RAY_CACHE", str(tmp_path / "first"))
    asked = {**GRID, "space": {"seed": [1]}}
    where = {"out": s3_url("sweep"), "experts_dir": s3_url("experts"), "workers": 1}
    first = ptm.sweep(asked, small_dataset(), **where)
    path, bucket = Place.of(where["experts_dir"]).for_ray()
    files = {info.path: info.mtime for info in bucket.get_file_info(fs.FileSelector(path, recursive=True))}
    assert sum(path.endswith(".arrow") for path in files) == 2
    assert first.set == "s3://ptm-ray-tests/sweep/best/set"
    monkeypatch.setenv("PTM_RAY_CACHE", str(tmp_path / "second"))
    again = ptm.sweep(asked, small_dataset(), **where)
    assert again == first
    arrows = [name for name in files if name.endswith(".arrow")]
    assert [info.mtime for info in bucket.get_file_info(arrows)] == [files[name] for name in arrows]
    assert ptm.SyntheticSet.load(s3_url("sweep/best/set")).images.shape == (6, 3, 16, 16)
    assert ptm.SyntheticSet.load(s3_url("sweep/best/set")).recipe["config"]["seed"] == first.config["seed"]
    table = Place.of(s3_url("sweep"))
    table.pull("trials.parquet")
    assert pq.read_table(table.local / "trials.parquet").num_rows == 1
