"""Pictures: the set as a grid, the run as curves."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ptm_ray.store.artefact import SyntheticSet

#: Most images of a class that the grid shows.
COLUMNS = 10


def grid(made: SyntheticSet, path: Path) -> None:
    """One row per class, its name beside it; up to ten images each, every pixel drawn as a square."""
    names = made.class_names
    columns = min(COLUMNS, int(np.bincount(made.labels).max()))
    figure = Figure(figsize=(columns * 0.9 + 1.8, len(names) * 0.9 + 0.2), dpi=120)
    axes = figure.subplots(len(names), columns, squeeze=False)
    for label, name in enumerate(names):
        rows = np.flatnonzero(made.labels == label)[:columns]
        for column in range(columns):
            axis = axes[label][column]
            axis.set_axis_off()
            if column < len(rows):
                picture = made.pixels[rows[column]]
                axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[label][0].text(-0.15, 0.5, name, transform=axes[label][0].transAxes, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(
        left=1.6 / (columns * 0.9 + 1.8), right=0.99, top=0.98, bottom=0.02, wspace=0.06, hspace=0.06
    )
    FigureCanvasAgg(figure).print_png(str(path))


def curve(result: dict[str, Any], path: Path) -> None:
    """Matching loss, validation accuracy, end snapshot and overlap ratio over the outer steps."""
    rows = result["rows"]
    steps = [row["outer_step"] for row in rows]
    figure = Figure(figsize=(7.5, 8), dpi=120)
    loss, validation, end, overlap = figure.subplots(4, 1, sharex=True)
    loss.plot(steps, [row["loss"] for row in rows], linewidth=0.8)
    loss.axhline(1, color="grey", linewidth=0.6, linestyle=":")
    loss.set_ylabel("matching loss")
    loss.set_ylim(bottom=0, top=max(1.2, min(3, max([row["loss"] for row in rows], default=1))))
    scored = sorted((point["outer_step"], point["balanced_accuracy"]) for point in result["validation"])
    validation.plot([s for s, _ in scored], [v for _, v in scored], marker=".", linewidth=0.8)
    validation.axvline(result["best_outer_step"], color="tab:green", linewidth=0.8, label="kept")
    validation.set_ylabel("validation\nbalanced accuracy")
    validation.legend(loc="lower right", fontsize=8, frameon=False)
    end.step(steps, [row["end"] for row in rows], where="post", linewidth=0.8)
    end.set_ylabel("end snapshot")
    looked = [(row["outer_step"], row["overlap"]) for row in rows if row["overlap"] is not None]
    overlap.plot([s for s, _ in looked], [v for _, v in looked], marker=".", linewidth=0.8)
    overlap.axhline(1, color="grey", linewidth=0.6, linestyle=":")
    for cycle in result["cycles"]:
        overlap.axvline(cycle["outer_step"], color="tab:red" if cycle["undone"] else "tab:green", linewidth=0.5)
    overlap.set_ylabel("overlap ratio\n(1 = as real)")
    overlap.set_xlabel("outer step")
    for axis in (loss, validation, end, overlap):
        axis.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(path))
