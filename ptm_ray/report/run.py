"""What a finished distillation leaves for people: the card, pictures, its history; and what its audit does."""

import json
from pathlib import Path
from typing import Any

from ptm_ray.report.audit import report
from ptm_ray.report.card import card
from ptm_ray.report.figures import curve, grid
from ptm_ray.store import atomic
from ptm_ray.store.artefact import RECIPE, SyntheticSet
from ptm_ray.store.checkpoints import RunFolder


def write_report(folder: RunFolder, made: SyntheticSet, result: dict[str, Any]) -> None:
    """Puts `card.md` and `grid.png` beside the set, `curve.png` and `result.json` into the run's folder."""
    atomic.write_text(folder.set_path / "card.md", card(made, result["scores"]))
    with atomic.replacing(folder.set_path / "grid.png") as temporary:
        grid(made, temporary)
    with atomic.replacing(folder.root / "curve.png") as temporary:
        curve(result, temporary)
    atomic.write_text(folder.result_path, json.dumps(result, indent=1))


def write_audit(folder: RunFolder, scores: dict[str, Any], findings: dict[str, Any]) -> Path | str:
    """`audit.md` and `audit.json` into the run's folder; what was found into its set's recipe and card.

    `scores` are the run's own, which the card has. Returns where the report lies, a path or a URL.
    """
    made = SyntheticSet.load(folder.set_place)
    made.recipe["audit"] = findings
    made.save(folder.set_path)
    atomic.write_text(folder.set_path / "card.md", card(made, scores))
    atomic.write_text(folder.root / "audit.md", report(made, findings))
    atomic.write_text(folder.root / "audit.json", json.dumps(findings, indent=1))
    folder.place.push(f"set/{RECIPE}", "set/card.md", "audit.md", "audit.json")
    return (folder.place / "audit.md").shown
