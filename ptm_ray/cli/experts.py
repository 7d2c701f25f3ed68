"""`ptm-ray experts`: trajectories to be shared by many distillations."""

from collections.abc import Sequence
from dataclasses import dataclass

from ptm_ray.cli.flags import Settings, Where, base_config, parse

ABOUT = """Trains the experts of a dataset, many at once, and keeps their trajectories. Experts are networks trained on
the real images; distillations match them.

Experts that are already there are reused. A command that was stopped goes on with those that are missing.

  ptm-ray experts --data pneumoniamnist --experts.count 20
"""


@dataclass(frozen=True)
class Experts(Where):
    """Flags of `experts`."""

    settings: Settings = None  # type: ignore[assignment]


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Experts, argv, Experts(settings=base_config(argv)), "experts", ABOUT)
    from ptm_ray import api
    from ptm_ray.cli.show import Bars, last_line

    settings = asked.settings
    with Bars() as bars:
        dataset = api.load_dataset(settings.data, size=settings.size, data_root=asked.data_root)
        folder = api.train_experts(
            dataset,
            config=settings,
            experts_dir=asked.experts_dir,
            workers=asked.workers,
            gpus_per_worker=asked.gpus_per_worker,
            watcher=bars,
        )
    print(f"experts  {folder}")
    if asked.json:
        last_line({"experts": str(folder), "count": settings.experts.count})
