"""`ptm-ray bench`: methods compared fairly."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ptm_ray.cli.flags import Places, SaysDefault, parse
from ptm_ray.config.suite import read_suite
from ptm_ray.errors import ConfigError

ABOUT = """Compares methods: distils several datasets by each of them, every set on one core within one time budget, and
scores all sets by one protocol. Methods share experts where they can.

Writes a table of every trained network (cells.parquet), a report (results.md) and pictures. A benchmark that was
stopped goes on when the same command is given again. A cell (one dataset, ipc, method and seed) that fails is recorded
with its error and tried again then; the exit code is 1 where one did.

SUITE (TOML) says what to compare; tune_configs/suites holds ready ones:

  name = "mine"
  datasets = ["pneumoniamnist", "bloodmnist@64", "scans.npz"]
  ipc = [1, 10]
  methods = ["ptm", "mtt", "dm", "random", "full"]
  seeds = 2
  budget_minutes = 1                 # of each distillation, after shared experts

  [settings]                         # of all cells, as in a settings file
  network.width = 32

  ptm-ray bench tune_configs/suites/smoke.toml --out runs/bench-smoke
"""


@dataclass(frozen=True)
class Bench(Places):
    """Flags of `bench`."""

    suite: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE", help_behavior_hint="")] = None
    """What to compare."""
    out: Annotated[str | None, SaysDefault] = None
    """Folder of the benchmark: table, report, pictures (default: runs/bench-NAME)."""
    gpus_per_worker: Annotated[float, SaysDefault] = 0.0
    """Share of a GPU that each worker has, such as 0.25 for four cells at once on one (default: none, all on CPUs)."""
    only: Annotated[str | None, SaysDefault] = None
    """Methods to run now, with commas between them (default: all of the suite)."""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Bench, argv, Bench(), "bench", ABOUT)
    if asked.suite is None:
        raise ConfigError("no suite given; tune_configs/suites holds some, ptm-ray bench --help shows what one says")
    suite = read_suite(asked.suite)
    from ptm_ray import api
    from ptm_ray.cli.show import Bars, last_line

    with Bars() as bars:
        result = api.bench(
            suite,
            out=asked.out or f"runs/bench-{suite.name}",
            experts_dir=asked.experts_dir,
            data_root=asked.data_root,
            only=[name.strip() for name in asked.only.split(",")] if asked.only else (),
            workers=asked.workers,
            gpus_per_worker=asked.gpus_per_worker,
            watcher=bars,
        )
    failed = f", {result.failed} of them failed" if result.failed else ""
    print(f"cells    {result.cells}{failed}\ntable    {result.table}\nreport   {result.report}")
    if asked.json:
        last_line(result.to_json())
    if result.failed:
        sys.exit(1)
