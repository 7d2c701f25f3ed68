"""What a finished distillation leaves for people: the card, pictures, its history."""

import json
from typing import Any

from ptm_ray.report.card import card
from ptm_ray.report.figures import curve, grid
from ptm_ray.store import atomic
from ptm_ray.store.artefact import SyntheticSet
from ptm_ray.store.checkpoints import RunFolder


def write_report(folder: RunFolder, made: SyntheticSet, result: dict[str, Any]) -> None:
    """Puts `card.md` and `grid.png` beside the set, `curve.png` and `result.json` into the run's folder."""
    atomic.write_text(folder.set_path / "card.md", card(made, result["scores"]))
    with atomic.replacing(folder.set_path / "grid.png") as temporary:
        grid(made, temporary)
    with atomic.replacing(folder.root / "curve.png") as temporary:
        curve(result, temporary)
    atomic.write_text(folder.result_path, json.dumps(result, indent=1))
