"""What a finished distillation leaves for people: the card, pictures, its history; and what its audit does."""

import json
from pathlib import Path
from typing import Any

from ptm_ray.report.audit import report
from ptm_ray.report.card import card
from ptm_ray.report.figures import curve, grid
from ptm_ray.report.page import page
from ptm_ray.report.tables import table
from ptm_ray.store import atomic
from ptm_ray.store.artefact import RECIPE, SyntheticSet
from ptm_ray.store.checkpoints import RunFolder

#: The page of a run, in its folder, and the pictures on it.
PAGE, GRID, CURVE = "report.html", "set/grid.png", "curve.png"


def write_report(folder: RunFolder, made: SyntheticSet, result: dict[str, Any]) -> None:
    """Puts `card.md` and `grid.png` beside the set, `curve.png`, the page and `result.json` into the run's folder."""
    _write_for_people(folder, made, result)
    atomic.write_text(folder.result_path, json.dumps(result, indent=1))


def write_audit(folder: RunFolder, result: dict[str, Any], findings: dict[str, Any]) -> Path | str:
    """`audit.md` and `audit.json` into the run's folder; what was found into its set's recipe, card and page.

    `result` is the run's own. Returns where the report lies, a path or a URL.
    """
    made = SyntheticSet.load(folder.set_place)
    made.recipe["audit"] = findings
    made.save(folder.set_path)
    _write_for_people(folder, made, result)
    atomic.write_text(folder.root / "audit.md", report(made, findings))
    atomic.write_text(folder.root / "audit.json", json.dumps(findings, indent=1))
    folder.place.push(f"set/{RECIPE}", "set/card.md", PAGE, "audit.md", "audit.json")
    return (folder.place / "audit.md").shown


def _write_for_people(folder: RunFolder, made: SyntheticSet, result: dict[str, Any]) -> None:
    said = card(made, result["scores"])
    atomic.write_text(folder.set_path / "card.md", said)
    with atomic.replacing(folder.root / GRID) as temporary:
        grid(made, temporary)
    with atomic.replacing(folder.root / CURVE) as temporary:
        curve(result, temporary)
    parts = [
        said,
        "## The images",
        f"![The images, up to ten of each class]({GRID})",
        "## How the run went",
        "\n".join(table(["cost", ""], _costs(result["cost"]))),
        *([_cycles(result["cycles"])] if result["cycles"] else []),
        f"![Matching loss, validation accuracy and segments over outer steps]({CURVE})",
    ]
    title = f"{made.recipe['dataset']['name']}, distilled"
    atomic.write_text(folder.root / PAGE, page(title, "\n\n".join(parts), folder.root, (GRID, CURVE)))


def _costs(cost: dict[str, float]) -> list[list[str]]:
    mib = 2**20
    return [
        ["experts", f"{cost['experts']:.0f}, {cost['buffer_bytes'] / mib:,.0f} MiB of trajectories"],
        ["seconds for experts that were missing", f"{cost['experts_s']:,.0f}"],
        ["seconds of distillation", f"{cost['distillation_s']:,.0f}"],
        ["seconds in all, evaluation included", f"{cost['total_s']:,.0f}"],
        ["outer steps", f"{cost['outer_steps']:,.0f}, of them {cost['skipped_updates']:,.0f} skipped"],
        ["peak memory of the distilling process", f"{cost['peak_memory_bytes'] / mib:,.0f} MiB"],
    ]


def _cycles(cycles: list[dict[str, Any]]) -> str:
    """Overlap mitigation, cycle by cycle."""
    head = ["cycle of overlap mitigation", "ended at step", "overlap ratio", "validation, percent", ""]
    rows = [
        [
            str(row["cycle"]),
            str(row["outer_step"]),
            f"{row['overlap_before']:.2f} → {row['overlap_after']:.2f}",
            f"{100 * row['validation_before']:.1f} → {100 * row['validation_after']:.1f}",
            "undone" if row["undone"] else "kept",
        ]
        for row in cycles
    ]
    return "\n".join(table(head, rows))
