"""Pictures: the set as a grid, the run as curves."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ptm_ray.store.artefact import SyntheticSet

#: Most images of a class that the grid shows.
COLUMNS = 10


def grid(made: SyntheticSet, path: Path) -> None:
    """One row per class, its name beside it; up to ten images each, every pixel drawn as a square."""
    names = made.class_names
    columns = min(COLUMNS, int(np.bincount(made.labels).max()))
    # Inches: a picture with the space around it, and a margin as wide as the longest name at nine points.
    cell, margin = 0.95, 0.15 + 0.08 * max(map(len, names))
    width, height = margin + columns * cell, len(names) * cell
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.subplots(len(names), columns, squeeze=False)
    for label, name in enumerate(names):
        rows = np.flatnonzero(made.labels == label)[:columns]
        for column in range(columns):
            axis = axes[label][column]
            axis.set_axis_off()
            if column < len(rows):
                picture = made.pixels[rows[column]]
                axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        beside = axes[label][0].transAxes
        axes[label][0].text(-0.08, 0.5, name, transform=beside, ha="right", va="center", fontsize=9, parse_math=False)
    figure.subplots_adjust(left=margin / width, right=1, top=1, bottom=0, wspace=0.06, hspace=0.06)
    FigureCanvasAgg(figure).print_png(str(path))


def curve(result: dict[str, Any], path: Path) -> None:
    """Matching loss, validation accuracy, segments with their end snapshots and, where it was looked at, overlap, over
    the outer steps."""
    rows = result["rows"]
    steps = [row["outer_step"] for row in rows]
    looked = [(row["outer_step"], row["overlap"]) for row in rows if row["overlap"] is not None]
    panels = 4 if looked else 3
    figure = Figure(figsize=(7.5, 2 * panels), dpi=120)
    axes = figure.subplots(panels, 1, sharex=True)
    loss, validation, end = axes[:3]
    loss.plot(steps, [row["loss"] for row in rows], linewidth=0.8)
    loss.axhline(1, color="grey", linewidth=0.6, linestyle=":")
    loss.set_ylabel("matching loss\n(1 = no progress)")
    loss.set_ylim(bottom=0, top=max(1.2, min(3, max([row["loss"] for row in rows], default=1))))
    scored = sorted((point["outer_step"], point["balanced_accuracy"]) for point in result["validation"])
    validation.plot([s for s, _ in scored], [v for _, v in scored], marker=".", linewidth=0.8)
    validation.axvline(result["kept_outer_step"], color="tab:green", linewidth=0.8, label="kept")
    validation.set_ylabel("validation\nbalanced accuracy")
    validation.legend(loc="lower right", fontsize=8, frameon=False)
    end.vlines(steps, [row["start"] for row in rows], [row["end"] for row in rows], linewidth=0.6, alpha=0.4)
    end.plot(steps, [row["end"] for row in rows], ".", markersize=3)
    end.set_ylim(bottom=0)
    end.yaxis.set_major_locator(MaxNLocator(integer=True))
    end.set_ylabel("segment and\nits end snapshot")
    if looked:
        _overlap(axes[3], looked, result["cycles"])
    axes[-1].set_xlabel("outer step")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(path))


def _overlap(axis: Axes, looked: list[tuple[int, float]], cycles: list[dict[str, Any]]) -> None:
    """The overlap ratio, with a line where each cycle ended."""
    axis.plot([s for s, _ in looked], [v for _, v in looked], marker=".", linewidth=0.8)
    axis.axhline(1, color="grey", linewidth=0.6, linestyle=":")
    for undone, colour, words in ((False, "tab:green", "cycle kept"), (True, "tab:red", "cycle undone")):
        for number, cycle in enumerate(c for c in cycles if c["undone"] == undone):
            axis.axvline(cycle["outer_step"], color=colour, linewidth=0.5, label=words if number == 0 else None)
    if cycles:
        axis.legend(loc="lower right", fontsize=8, frameon=False)
    axis.set_ylabel("overlap ratio\n(1 = as real)")
