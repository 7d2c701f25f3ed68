"""A suite without Ray: as on a machine with a GPU, here on a processor."""

import subprocess
import sys

from ptm_ray.store.cells import CellTable
from ptm_ray.store.places import Place

SUITE = """
name = "few"
datasets = ["cellphantom"]
ipc = [1]
seeds = 1
conditions = ["unified"]
methods = ["ptm", "random"]

[settings]
outer_steps = 2
network.width = 4
experts = { count = 2, steps = 20, snapshots = 4 }
evaluation = { seeds = 1, steps = 10, validation_steps = 5 }
"""


def test_every_cell_is_run_once_and_what_is_there_is_gone_on_with(tmp_path):
    (tmp_path / "few.toml").write_text(SUITE)
    places = ["--data-root", tmp_path, "--out", tmp_path / "out", "--experts-dir", tmp_path / "experts"]
    words = [sys.executable, "-m", "benchmarks.gpu_suite", tmp_path / "few.toml", *places]
    more = ["--device", "cpu", "--processes", "2"]

    def said(*extra):
        return subprocess.run([*words, *more, *extra], capture_output=True, text=True, check=True).stdout

    assert "cellphantom-ipc1-random-0" in said("--only", "random")
    first = CellTable(Place(tmp_path / "out")).rows
    assert [row["method"] for row in first] == ["random"]
    rest = said()
    assert "ptm-0" in rest
    assert "random-0" not in rest
    rows = {row["method"]: row for row in CellTable(Place(tmp_path / "out")).rows}
    assert rows["random"] == first[0]
    assert rows["ptm"]["outer_steps"] == 2
    assert 0 < rows["ptm"]["balanced_accuracy"] <= 1
    assert rows["ptm"]["experts_s"] > 0
    assert said() == ""
