"""`ptm-ray audit`: what a set gives away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from ptm_ray.cli.flags import Places, SaysDefault, parse

ABOUT = """Asks how much a distillation gives away about who was in the training data.

Some training images become canaries: half of them get a wrong label, and for each a coin decides if it is put back.
The run is made again on the images that are there then, with new experts, the same settings and as many outer steps.
Attacks then guess from its set which canaries were in. What they find in a network trained on all images stands beside
it.

Writes a report into the run's folder and a paragraph onto the set's card. Attacks are lower bounds: nothing here is a
guarantee. It takes about as long as the run with its experts did. An audit that was stopped goes on when the same
command is given again.

  ptm-ray audit runs/pneumonia
  ptm-ray audit runs/scans --data scans/      # images of your own: a run does not keep their path
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
