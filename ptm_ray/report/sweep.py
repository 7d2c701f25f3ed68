"""What a person sees of a sweep: a tidy table, and which setting mattered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ptm_ray.evaluation.protocol import summarise
from ptm_ray.report.tables import cell, table
from ptm_ray.store import atomic

Rows = Sequence[dict[str, Any]]
#: The weight whose effect is drawn for each schedule where both were swept.
WEIGHT, SCHEDULE = "overlap.weight", "schedule.kind"
#: Trials that differ in nothing else are repetitions.
SEED = "seed"
#: As many values of the weight have a mark each on its axis.
MARKED = 8
#: Values of a range are compared in so many groups of equal size.
GROUPS = 4


def write_sweep(out: Path, rows: Rows, settings: Sequence[str], metric: str) -> list[str]:
    """`trials.parquet`, `trials.md` and the pictures that the trials are enough for, into `out`; their names.

    `rows`: one a trial, its `settings` and `metric` among the columns; a trial without a score has None there.
    """
    with atomic.replacing(out / "trials.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist([_plain(row) for row in rows]), temporary)
    shares = importance(rows, settings, metric)
    atomic.write_text(out / "trials.md", markdown(rows, settings, metric, shares))
    scored = [row for row in rows if row[metric] is not None]
    written = ["trials.parquet", "trials.md"]
    if len(scored) < 2:
        return written
    with atomic.replacing(out / "parallel.png") as temporary:
        parallel(scored, settings, metric, temporary)
    with atomic.replacing(out / "importance.png") as temporary:
        importances(shares, temporary)
    written += ["parallel.png", "importance.png"]
    if WEIGHT in settings:
        with atomic.replacing(out / "weight.png") as temporary:
            over_weight(scored, metric, temporary)
        written.append("weight.png")
    return written


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A column has one type: what is no number is text."""
    kinds = (int, float, str, bool, type(None))
    return {key: value if isinstance(value, kinds) else str(value) for key, value in row.items()}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def markdown(rows: Rows, settings: Sequence[str], metric: str, shares: dict[str, float]) -> str:
    """The trials, best first, and the share of the scores' variance that goes with each setting."""
    order = sorted(rows, key=lambda row: -np.inf if row[metric] is None else row[metric], reverse=True)
    shown = []
    for row in order:
        score = f"failed: {row['error']}" if row[metric] is None else f"{100 * row[metric]:.1f}"
        seconds = "" if row["distillation_s"] is None else f"{row['distillation_s']:.0f}"
        shown.append([*(_shown(row[name]) for name in settings), score, str(row["outer_step"] or ""), seconds])
    lines = table([*settings, f"{_words(metric)}, percent", "outer steps", "seconds"], shown)
    if shares:
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        lines += ["", f"Share of the scores' variance that goes with each setting alone: {told}."]
    if SEED in settings and len(settings) > 1:
        lines += ["", *over_seeds(rows, settings, metric)]
    return "\n".join(lines) + "\n"


def over_seeds(rows: Rows, settings: Sequence[str], metric: str) -> list[str]:
    """A Markdown table of every combination of the settings but the seed, the best first.

    Mean and standard deviation of its seeds' scores and, where the MMD weight was swept from 0 on, the mean difference
    to weight 0 of the same seeds with its 95 % interval.
    """
    others = [name for name in settings if name != SEED]
    scores: dict[tuple[Any, ...], dict[Any, float]] = {}
    for row in rows:
        if row[metric] is not None:
            scores.setdefault(tuple(row[name] for name in others), {})[row[SEED]] = row[metric]
    head = [*others, f"{_words(metric)}, percent", "seeds"]
    against_none = WEIGHT in others and any(row[WEIGHT] == 0 for row in rows)
    lines = []
    means = {values: summarise([{metric: score} for score in own.values()])[metric] for values, own in scores.items()}
    for values in sorted(means, key=lambda values: -means[values]["mean"]):
        shown = [*map(_shown, values), cell(means[values]), str(len(scores[values]))]
        if against_none:
            none = scores.get(tuple(0 if name == WEIGHT else v for name, v in zip(others, values, strict=True)), {})
            shown.append("" if none is scores[values] else _difference(scores[values], none))
        lines.append(shown)
    return table(head + ["against weight 0"] * against_none, lines)


def _difference(more: dict[Any, float], less: dict[Any, float]) -> str:
    pairs = [{"points": 100 * (more[seed] - less[seed])} for seed in more.keys() & less.keys()]
    if not pairs:
        return ""
    over = summarise(pairs)["points"]
    interval = f" ({over['low']:+.1f} to {over['high']:+.1f})" if len(pairs) > 1 else ""
    return f"{over['mean']:+.1f}{interval}"


def importance(rows: Rows, settings: Sequence[str], metric: str) -> dict[str, float]:
    """Setting → share of the scores' variance between its values (η²), the largest first; empty for too few trials.

    Of one setting at a time: what two do only together is no one's. With few trials for each value, chance alone gives
    every setting some share. Values of a range are compared in quarters.
    """
    scored = [row for row in rows if row[metric] is not None]
    scores = np.array([row[metric] for row in scored], dtype=float)
    if len(scored) < 3 or scores.var() == 0:
        return {}
    shares = {name: _between(_groups([row[name] for row in scored]), scores) for name in settings}
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _groups(values: Sequence[Any]) -> list[Any]:
    """The values themselves, or, where they are many numbers, the quarter that each lies in."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(set(values)) <= GROUPS:
        return list(values)
    ranks = np.argsort(np.argsort(np.array(values, dtype=float), kind="stable"), kind="stable")
    return list(ranks * GROUPS // len(values))


def _between(groups: Sequence[Any], scores: np.ndarray) -> float:
    total = ((scores - scores.mean()) ** 2).sum()
    members = [scores[[g == group for g in groups]] for group in dict.fromkeys(groups)]
    return float(sum(len(m) * (m.mean() - scores.mean()) ** 2 for m in members) / total)


def _positions(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where values lie on an axis from 0 to 1, and its marks: numbers by size, all else one above the other."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, dtype=float)
        low, high = numbers.min(), numbers.max()
        scale = np.log if low > 0 and high / low >= 20 else np.asarray
        span = (scale(high) - scale(low)) or 1.0
        return (scale(numbers) - scale(low)) / span, [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
    names = sorted({str(value) for value in values})
    at = {name: (k + 0.5) / len(names) for k, name in enumerate(names)}
    return np.array([at[str(value)] for value in values]), [(y, name) for name, y in at.items()]


def parallel(rows: Rows, settings: Sequence[str], metric: str, path: Path) -> None:
    """A line for each trial through its settings and its score, coloured by the score."""
    scores = np.array([row[metric] for row in rows], dtype=float)
    columns = [*settings, metric]
    axes_at = [_positions([row[name] for row in rows]) for name in settings]
    axes_at.append(_positions([100 * row[metric] for row in rows]))
    figure = Figure(figsize=(1.9 * len(columns) + 1, 4), dpi=120)
    axis = figure.subplots()
    colour = ScalarMappable(Normalize(100 * scores.min(), 100 * scores.max()), colormaps["viridis"])
    # The best last, on top of the others; lines that share a value are told apart by a little room.
    for rank, k in enumerate(np.argsort(scores)):
        room = 0.02 * (rank / max(1, len(rows) - 1) - 0.5)
        heights = [positions[k] + room for positions, _ in axes_at]
        axis.plot(range(len(columns)), heights, color=colour.to_rgba(100 * scores[k]), linewidth=1.2)
    for at, (_, marks) in enumerate(axes_at):
        axis.axvline(at, color="black", linewidth=0.6)
        for y, words in marks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
            axis.text(at + 0.03, y, words, fontsize=8, va="center", bbox=box)
    axis.set_xticks(range(len(columns)), [*settings, f"{_words(metric)},\npercent"], fontsize=8)
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(columns) - 1 + 0.35)
    axis.spines[:].set_visible(False)
    figure.colorbar(colour, ax=axis, label=f"{_words(metric)}, percent", pad=0.02)
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(path))


def importances(shares: dict[str, float], path: Path) -> None:
    """`importance` as bars."""
    figure = Figure(figsize=(6, 0.5 * max(2, len(shares)) + 0.9), dpi=120)
    axis = figure.subplots()
    names = list(reversed(shares))
    axis.barh(names, [100 * shares[name] for name in names], height=0.6)
    axis.set_xlabel("share of the scores' variance, %")
    axis.set_xlim(0, 100)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(path))


def over_weight(rows: Rows, metric: str, path: Path) -> None:
    """Validation accuracy over the MMD weight, a line for each schedule: points are trials, lines their means."""
    figure = Figure(figsize=(6, 3.6), dpi=120)
    axis = figure.subplots()
    for kind in sorted({str(row.get(SCHEDULE, "")) for row in rows}):
        own = [row for row in rows if str(row.get(SCHEDULE, "")) == kind]
        weights = sorted({row[WEIGHT] for row in own})
        means = [np.mean([100 * row[metric] for row in own if row[WEIGHT] == weight]) for weight in weights]
        (line,) = axis.plot(weights, means, linewidth=1, label=kind)
        axis.plot([r[WEIGHT] for r in own], [100 * r[metric] for r in own], ".", color=line.get_color(), alpha=0.6)
    tried = sorted({row[WEIGHT] for row in rows})
    if tried[-1] > 0:
        axis.set_xscale("symlog", linthresh=min(weight for weight in tried if weight > 0))
    if len(tried) <= MARKED:
        axis.set_xticks(tried, [f"{weight:g}" for weight in tried])
        axis.minorticks_off()
    axis.set_xlabel("MMD weight (0 = no mitigation)")
    axis.set_ylabel(f"{_words(metric)},\npercent")
    if any(SCHEDULE in row for row in rows):
        axis.legend(title="schedule", fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(path))
