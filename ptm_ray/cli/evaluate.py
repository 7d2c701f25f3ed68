"""`ptm-ray evaluate`: how good is a set, ours or another's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ptm_ray.cli.flags import SaysDefault, Switch, parse
from ptm_ray.errors import ConfigError

ABOUT = """Scores a synthetic set: trains fresh networks on it and tests them on the dataset's test split. Beside
that it trains others on as many random real images, and on all training images.

  ptm-ray evaluate runs/pneumonia --networks convnet,resnet18 --seeds 3
  ptm-ray evaluate runs/scans --data scans/   # images of your own: a run does not keep their path
"""


@dataclass(frozen=True)
class Evaluate:
    """Flags of `evaluate`."""

    set: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    """Folder or s3:// URL of a set (or of its run); or another's: npz, class folders, or a table."""
    data: Annotated[str | None, SaysDefault] = None
    """Dataset to score on, as for distill (default: the one that the set was made from)."""
    networks: str = "convnet"
    """Architectures, with commas: convnet, resnet18, resnet18_bn, vgg11, alexnet, vit."""
    seeds: int = 3
    """Networks of each architecture."""
    data_root: Annotated[Path | None, SaysDefault] = None
    """Folder in which datasets are looked for first, and into which MedMNIST's are downloaded (default: its own)."""
    workers: Annotated[int | None, SaysDefault] = None
    """One-CPU workers (default: one for every CPU that Ray has)."""
    gpus_per_worker: Annotated[float, SaysDefault] = 0.0
    """Share of a GPU that each worker has, such as 0.25 for four workers on one (default: none, all on CPUs)."""
    json: Switch = False
    """Print one JSON object as the last line of standard output."""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Evaluate, argv, tyro.MISSING_NONPROP, "evaluate", ABOUT)
    names = tuple(name.strip() for name in asked.networks.split(",") if name.strip())
    if not names or asked.seeds < 1:
        raise ConfigError(f"--networks {asked.networks!r} and --seeds {asked.seeds}: at least one of each is needed")
    from ptm_ray import api
    from ptm_ray.cli.show import Bars, last_line, scores_table

    with Bars() as bars:
        found = api.evaluate(
            asked.set,
            asked.data,
            networks=names,
            seeds=asked.seeds,
            data_root=asked.data_root,
            workers=asked.workers,
            gpus_per_worker=asked.gpus_per_worker,
            watcher=bars,
        )
    if len(names) > 1:
        for name, scores in found["by_network"].items():
            scores_table(scores, f"{asked.set}, {name}: test split, percent")
    scores_table(found["scores"], f"{asked.set}, {', '.join(names)}: test split, percent")
    if asked.json:
        last_line({"scores": found["scores"], "by_network": found["by_network"]})
