"""Pictures of a bench: accuracy over images per class, accuracy against cost."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator
from matplotlib.transforms import Bbox

from ptm_ray.config.presets import OURS
from ptm_ray.report.bench_cells import Bench, Field
from ptm_ray.report.bench_tables import joined

#: Most panels side by side.
COLUMNS = 3
#: What a kind of method is drawn with, so that a dozen lines fall into a few groups.
LINES = {"trajectory": "-", "variant": "-", "matching": "--", "selection": ":"}
MARKERS = "osD^vP*XpdhH<>"
#: Those of matplotlib's tab10 that are neither the red of ptm nor the grey of full data, and darker ones after them.
COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf"]
COLOURS += ["#0b3c5d", "#7a4a00", "#145214", "#4b2a6b"]
OURS_COLOUR, FULL_COLOUR, FULL_LINE = "#d62728", "#555555", (0, (6, 3))
#: Where a name may stand, in points from its mark: the nearest first, right before left.
TURNS = [math.radians(degrees) for degrees in (0, 30, -30, 60, -60, 180, 150, -150, 120, -120, 90, -90)]
PLACES = [(9 * far * math.cos(turn), 8 * far * math.sin(turn)) for far in (1, 1.7, 2.6, 3.6, 4.8, 6) for turn in TURNS]
#: Names farther from their marks than so many points are joined to them by a line.
LEADER_FROM = 13
#: Properties of a line, as matplotlib names them.
Style = dict[str, Any]


def _styles(bench: Bench) -> dict[str, Style]:
    """How each method is drawn: the same in every picture."""
    others = [m for m in bench.methods if m != OURS]
    styles: dict[str, Style] = {}
    for at, method in enumerate(others):
        line, colour = LINES.get(bench.kinds[method], "-."), COLOURS[at % len(COLOURS)]
        marker = MARKERS[(at + 1) % len(MARKERS)]
        styles[method] = {"color": colour, "linestyle": line, "marker": marker, "linewidth": 1.1, "markersize": 5}
    ours = {"color": OURS_COLOUR, "linestyle": "-", "marker": "o", "linewidth": 2.6, "markersize": 7, "zorder": 5}
    return styles | ({OURS: ours} if OURS in bench.methods else {})


def over_ipc(bench: Bench, field: Field, path: Path) -> None:
    """Balanced accuracy over images per class: a panel for each dataset, a line for each method, full data dashed."""
    rows = math.ceil(len(bench.datasets) / COLUMNS)
    columns = math.ceil(len(bench.datasets) / rows)
    # Inches of the legend, by its longest name.
    room = max(1.6, 0.8 + 0.065 * max(map(len, bench.methods), default=0))
    figure = Figure(figsize=(3.3 * columns + 0.3 + room, 2.9 * rows + 0.3), dpi=120)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    styles = _styles(bench)
    for axis, dataset in zip(axes, bench.datasets, strict=False):
        _panel(axis, bench, dataset, styles)
    for at, axis in enumerate(axes):
        axis.set_visible(at < len(bench.datasets))
        # The lowest of its column has the marks: the last row may be short.
        lowest = at + columns >= len(bench.datasets)
        axis.tick_params(labelbottom=lowest)
        axis.set_xlabel("images per class" if lowest else "")
        axis.set_ylabel("balanced accuracy, percent" if at % columns == 0 else "")
    legend = [Line2D([], [], label=m, **styles[m]) for m in field.ordered(bench) if m in styles]
    if bench.full in bench.kinds:
        legend.append(Line2D([], [], label="full data", color=FULL_COLOUR, linestyle=FULL_LINE, linewidth=1))
    right = 1 - room / figure.get_figwidth()
    figure.tight_layout(rect=(0, 0, right, 1))
    figure.legend(
        handles=legend, loc="center left", bbox_to_anchor=(right, 0.5), fontsize=8, frameon=False, handlelength=3.5
    )
    FigureCanvasAgg(figure).print_png(str(path))


def _panel(axis: Axes, bench: Bench, dataset: str, styles: dict[str, Style]) -> None:
    cells = [cell for cell in bench.cells if cell.dataset == dataset]
    for method, style in styles.items():
        # A cell that is missing breaks no line, or a method with gaps would hardly be seen.
        found = [(bench.ipcs.index(c.ipc), s) for c in cells if (s := bench.mean(method, c)) is not None]
        axis.plot([x for x, _ in found], [100 * score for _, score in found], **style)
    full = bench.mean(bench.full, cells[0])
    if full is not None:
        axis.axhline(100 * full, color=FULL_COLOUR, linestyle=FULL_LINE, linewidth=1)
    # Numbers of images grow by factors: a mark each, equally far apart.
    axis.set_xticks(range(len(bench.ipcs)), [str(ipc) for ipc in bench.ipcs])
    axis.set_xlim(-0.25, len(bench.ipcs) - 0.75)
    axis.set_title(dataset, fontsize=10)
    axis.grid(axis="y", linewidth=0.4, alpha=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def against_cost(bench: Bench, field: Field, path: Path) -> None:
    """Mean balanced accuracy over cells against the seconds of experts and distillation: a point for each method.

    Where nobody knows what experts took, against those of distillation alone.
    """
    figure = Figure(figsize=(8, 5.2), dpi=120)
    canvas, axis, styles = FigureCanvasAgg(figure), figure.subplots(), _styles(bench)
    order = [m for m in field.ordered(bench) if m in styles]
    compared = [m for m in order if _is_compared(bench, field, m)]
    costs = {m: _costs(bench, field, m) for m in compared or order}
    charged = any(cost.experts for cost in costs.values()) or None not in [cost.experts for cost in costs.values()]
    marks = {m: mark for m, cost in costs.items() if (mark := cost.mark(charged)) is not None}
    for method, (seconds, score) in marks.items():
        axis.plot([seconds], [score], **{**styles[method], "linestyle": ""})
    full = field.average(bench, bench.full, bench.cells)
    if full is not None:
        axis.axhline(100 * full.mean, color=FULL_COLOUR, linestyle=FULL_LINE, linewidth=1)
        where = axis.get_yaxis_transform()
        axis.text(0.005, 100 * full.mean, "full data", transform=where, va="bottom", fontsize=8, color=FULL_COLOUR)
    _scale([seconds for seconds, _ in marks.values()], axis)
    axis.margins(x=0.15, y=0.1)
    axis.set_xlabel(f"seconds of {'experts and ' if charged else ''}distillation, mean over cells")
    axis.set_ylabel("balanced accuracy, percent, mean over cells")
    axis.grid(linewidth=0.4, alpha=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("\n".join([*_caveat(order, compared), *_unknown(costs, charged)]), fontsize=8, loc="left")
    figure.tight_layout()
    _write_names(canvas, axis, marks, styles)
    canvas.print_png(str(path))


def _is_compared(bench: Bench, field: Field, method: str) -> bool:
    score = field.average(bench, method, bench.cells)
    return score is not None and not score.marked


def _caveat(order: list[str], compared: list[str]) -> list[str]:
    missing = [method for method in order if method not in compared]
    if not compared:
        return ["Each over the cells that it has: not to be compared"]
    return [f"Left out, with scores in too few cells: {joined(missing)}"] if missing else []


class _Costs(NamedTuple):
    """Seconds of a method, None where they are unknown; `partly` where those of experts are, in some cells. Percent."""

    experts: float | None
    distillation: float | None
    score: float | None
    partly: bool

    def mark(self, charged: bool) -> tuple[float, float] | None:
        """Seconds, with those of experts where they are `charged`, and percent; None where any is missing."""
        seconds = [self.distillation, *([self.experts] if charged else [])]
        if self.score is None or None in seconds:
            return None
        return sum(part for part in seconds if part is not None), self.score


def _costs(bench: Bench, field: Field, method: str) -> _Costs:
    columns = ("experts_s", "distillation_s", "balanced_accuracy")
    experts, distillation, score = (field.average(bench, method, bench.cells, column) for column in columns)
    return _Costs(
        None if experts is None else experts.mean,
        None if distillation is None else distillation.mean,
        None if score is None else 100 * score.mean,
        experts is not None and score is not None and experts.cells < score.cells,
    )


def _unknown(costs: dict[str, _Costs], charged: bool) -> list[str]:
    """What is not known of experts that were trained for something else, and found."""
    if not charged:
        return ["Without experts: they were found, and what they took is unknown"]
    unknown = [m for m, cost in costs.items() if cost.experts is None]
    partly = [m for m, cost in costs.items() if cost.partly]
    said = {"No mark, experts' seconds unknown": unknown, "Experts' seconds unknown in some cells": partly}
    return [f"{words}: {joined(methods)}" for words, methods in said.items() if methods]


def _scale(seconds: list[float], axis: Axes) -> None:
    """Logarithmic, with a place for 0: choosing real images may cost nothing."""
    positive = [value for value in seconds if value > 0]
    if not positive:
        return
    linear = min(positive) / 2
    axis.set_xscale("symlog", linthresh=linear, linscale=0.4)
    axis.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=[1, 2, 5]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    if len(positive) == len(seconds):
        axis.set_xlim(linear, 2 * max(positive))


def _write_names(
    canvas: FigureCanvasAgg, axis: Axes, marks: dict[str, tuple[float, float]], styles: dict[str, Style]
) -> None:
    """Each method's name beside its mark, in the nearest place where it covers no mark and no other name."""
    canvas.draw()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in map(axis.transData.transform, marks.values())]
    taken += [text.get_window_extent() for text in axis.texts]
    for method, mark in marks.items():
        weight, colour = "bold" if method == OURS else "normal", styles[method]["color"]
        name = axis.annotate(
            method, mark, (0, 0), textcoords="offset points", va="center", fontsize=9, fontweight=weight, color=colour
        )
        for dx, dy in PLACES:
            name.set_position((dx, dy))
            name.set_horizontalalignment("left" if dx > 1 else "right" if dx < -1 else "center")
            box = name.get_window_extent(canvas.get_renderer()).padded(1)
            if axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        if math.hypot(*name.get_position()) > LEADER_FROM:
            line = {"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkA": 0, "shrinkB": 2}
            axis.annotate("", mark, name.get_position(), textcoords="offset points", arrowprops=line)
