"""`ptm-ray audit`: what a set gives away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from ptm_ray.cli.flags import Places, SaysDefault, parse

ABOUT = """Asks how much a distillation gives away about who was in the training data.

Some training images become canaries: a coin decides for each whether it is put back, half of them with a wrong label.
The run is made again on that, experts included, with its settings and as many outer steps; then attacks that see the
result say which canaries were in. What they find in a network trained on all images stands beside it. Writes a report
into the run's folder and a paragraph onto the set's card. Attacks are lower bounds; nothing here is a guarantee. An
audit that was stopped goes on when the same command is given again.

  ptm-ray audit runs/pneumonia
"""


@dataclass(frozen=True, kw_only=True)
class Audit(Places):
    """Flags of `audit`."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder or s3:// URL of a finished run of distill."""
    data: Annotated[str | None, SaysDefault] = None
    """Dataset that the run was made from, as for distill (default: the one that it names)."""
    canaries: Annotated[int | None, SaysDefault] = None
    """Training images that a coin is thrown for (default: 400, or as many as there can be: a quarter of each class)."""
    seed: int = 0
    """Seed of which images, which labels and the coins."""
    gpus_per_worker: Annotated[float, SaysDefault] = 0.0
    """Share of a GPU that each worker has (default: none, all on CPUs)."""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Audit, argv, tyro.MISSING_NONPROP, "audit", ABOUT)
    from ptm_ray import api
    from ptm_ray.cli.show import Bars, audit_table, last_line

    with Bars() as bars:
        result = api.audit(
            asked.run,
            asked.data,
            canaries=asked.canaries,
            seed=asked.seed,
            experts_dir=asked.experts_dir,
            data_root=asked.data_root,
            workers=asked.workers,
            gpus_per_worker=asked.gpus_per_worker,
            watcher=bars,
        )
    audit_table(result.findings, f"{asked.run}: {result.findings['canaries']} canaries, attacks on what is handed on")
    print(f"report   {result.report}")
    if asked.json:
        last_line(result.to_json())
