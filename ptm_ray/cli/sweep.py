"""`ptm-ray sweep`: settings searched with Ray Tune."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ptm_ray.cli.flags import Places, SaysDefault, Switch, parse
from ptm_ray.config.sweep import read_sweep
from ptm_ray.errors import ConfigError

ABOUT = """Searches settings: runs many distillations (trials) that differ in some of them, on experts that are trained
once, and compares them on the validation split.

Writes a table of all trials, pictures, TensorBoard logs, and the best trial's set as distill does. A sweep that was
stopped goes on, each trial from its checkpoint, when the same command is given again.

FILE (TOML) says what to search; tune_configs holds ready ones:

  searcher = "random"                # grid, random, optuna
  trials = 16
  scheduler = "asha"                 # none, asha, pbt
  budget_minutes = 1                 # of each trial
  metric = "balanced_accuracy"       # accuracy, worst_recall: on the validation split
  stop_at = 0.95                     # a trial that scores this much ends

  [settings]                         # of all trials, as in a settings file
  data = "pneumoniamnist"

  [space]                            # lists of values, or ranges
  schedule.kind = ["progress", "count"]
  overlap.weight = { low = 0.5, high = 16, log = true }

  ptm-ray sweep tune_configs/schedule_mmd.toml --data pneumoniamnist --out runs/sweep
"""


@dataclass(frozen=True)
class Sweep(Places):
    """Flags of `sweep`."""

    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """What to search. May be left out with --resume."""
    out: Annotated[str | None, SaysDefault] = None
    """Folder of the sweep: table, pictures, trials, the best set (default: runs/sweep-FILE)."""
    resume: Switch = False
    """Go on with the sweep that --out holds, as it was asked for then. For folders of your own alone: Tune keeps its
    state as pickles, which can run anything when they are read."""
    data: Annotated[str | None, SaysDefault] = None
    """Dataset, as for distill (default: the one that FILE names; with --resume, the one of then, if it has a name)."""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Sweep, argv, Sweep(), "sweep", ABOUT)
    wanted = None
    if asked.resume:
        if asked.out is None:
            raise ConfigError("--resume goes on with the sweep in a folder; name it with --out")
        if asked.file is not None:
            raise ConfigError(f"--resume goes on as was asked for then; leave {asked.file} out, or --resume")
    elif asked.file is None:
        raise ConfigError("no sweep file given; tune_configs holds some, ptm-ray sweep --help shows what one says")
    else:
        wanted = read_sweep(asked.file)
    from ptm_ray import api
    from ptm_ray.cli.show import Bars, last_line

    out = asked.out or f"runs/sweep-{asked.file.stem if asked.file else ''}"
    with Bars() as bars:
        result = api.sweep(
            wanted or api.held_sweep(str(asked.out), asked.data, asked.data_root),
            asked.data,
            out=out,
            experts_dir=asked.experts_dir,
            data_root=asked.data_root,
            workers=asked.workers,
            watcher=bars,
        )
    best = ", ".join(f"{name} {value}" for name, value in result.config.items())
    print(f"best     {100 * result.score:.1f} % {result.metric.replace('_', ' ')} on validation: {best}")
    failed = f", {result.failed} of them failed" if result.failed else ""
    print(f"trials   {result.trials}{failed}: {str(result.table).removesuffix('parquet')}md\nset      {result.set}")
    if asked.json:
        last_line(result.to_json())
