"""`ptm-ray distill`: the main job."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ptm_ray as ptm
from ptm_ray.cli.flags import SaysDefault, Settings, Where, base_config, parse
from ptm_ray.config import DistillConfig
from ptm_ray.errors import ConfigError

ABOUT = """Real images in, an evaluated and shareable synthetic set out.

Trains experts on the dataset (once: they are kept and found again), distils their trajectories into a few images per
class, and scores fresh networks trained on those beside random real images and full data. A run that was stopped goes
on when the same command is given again.

  ptm-ray distill --data pneumoniamnist --ipc 10 --budget-minutes 5 --out runs/pneumonia
"""


@dataclass(frozen=True)
class Distill(Where):
    """Flags of `distill`."""

    out: Annotated[str | None, SaysDefault] = None
    """Folder of the run, or an s3:// URL: the set, its card and picture, curves, scores (default:
    runs/DATA-ipcIPC-METHOD-SEED)."""
    budget_minutes: Annotated[float | None, SaysDefault] = None
    """Wall time of the distillation itself, after the experts (default: until all outer steps are done)."""
    settings: Settings = None  # type: ignore[assignment]


def begins_with_somebodys(settings: DistillConfig) -> bool:
    """Whether the set begins as real images: cells that the package draws are nobody's."""
    return settings.data != "cellphantom" and settings.images.init != "noise"


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Distill, argv, Distill(settings=base_config(argv)), "distill", ABOUT)
    if asked.budget_minutes is not None and asked.budget_minutes <= 0:
        raise ConfigError(f"--budget-minutes must be above 0, got {asked.budget_minutes:g}")
    from ptm_ray import api
    from ptm_ray.cli.show import Bars, last_line, say_how_it_began, scores_table
    from ptm_ray.orchestrate.session import connected

    settings = asked.settings
    name = f"{Path(settings.data).stem}-ipc{settings.ipc}-{settings.method}-{settings.seed}"
    out = asked.out or f"runs/{name}"
    with Bars() as bars, ThreadPoolExecutor(1) as aside, ExitStack() as stack:
        reading = aside.submit(lambda: ptm.load_dataset(settings.data, size=settings.size, data_root=asked.data_root))
        if settings.data == "cellphantom":
            # Images that are drawn can't be bad, so Ray starts meanwhile: they take seconds the first time, and torch,
            # which is imported with them, every time. Others are read first, so that bad ones are refused at once.
            stack.enter_context(connected(asked.workers))
        dataset = reading.result()
        bars.say(f"{dataset.name}: {dataset.summary}")
        for note in dataset.notes:
            bars.say(f"{dataset.name}: {note}")
        result = ptm.distill(
            dataset,
            out=out,
            config=settings,
            budget_minutes=asked.budget_minutes,
            experts_dir=asked.experts_dir,
            workers=asked.workers,
            gpus_per_worker=asked.gpus_per_worker,
            watcher=bars,
        )
    scores_table(result.scores, f"{dataset.name}, {settings.ipc} images per class: test split, percent")
    print(f"set      {result.set}\npicture  {result.set}/grid.png\ncurves   {result.curve}\npage     {result.page}")
    if begins_with_somebodys(settings):
        # By what was asked for, as a URL that is shown lacks its query.
        say_how_it_began(api.held_set(out).recipe)
    if asked.json:
        last_line(result.to_json())
