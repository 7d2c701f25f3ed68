"""What a bench says of ptm: against the best earlier trajectory method, as its paper states it, and against each."""

import math
import statistics
from collections.abc import Sequence

from ptm_ray.config.presets import OURS
from ptm_ray.evaluation.comparison import FEWEST_PAIRS, Difference, holm, paired_difference, signed_rank_p
from ptm_ray.report.bench_cells import UNIFIED, Bench, Cell, Field
from ptm_ray.report.bench_tables import NONE, counted, joined, name
from ptm_ray.report.tables import table

#: ipc → points over the best earlier method that arXiv 2403.13469 states; None is the average over all.
PUBLISHED = {None: 8.33, 2: 11.7}
#: Points; cells that differ by less are shown as equal.
TIE = 0.05
SIGNIFICANT = 0.05


def interval(difference: Difference, around: str = " ({})") -> str:
    """` (+0.2 to +2.6)`, or nothing for one pair."""
    shown = f"{difference.low:+z.1f} to {difference.high:+z.1f}"
    return "" if math.isnan(difference.low) else around.format(shown)


def points(difference: Difference) -> str:
    """A mean difference with its interval; where it is negative, in words too."""
    shown = f"{difference.mean:+z.1f}{interval(difference)}"
    return f"{shown}, behind" if shown.startswith("-") else shown


def _percent(bench: Bench, method: str, cell: Cell, condition: str = UNIFIED) -> float:
    score = bench.mean(method, cell, condition=condition)
    return math.nan if score is None else 100 * score


def claim(bench: Bench) -> list[str] | None:
    """ptm minus the best earlier trajectory method, over all cells and at each ipc; None without both of them."""
    earlier = [m for m, kind in bench.kinds.items() if kind == "trajectory" and m != OURS]
    field = Field.of(bench, [OURS, *earlier])
    rivals = [m for m in field.methods if m != OURS]
    if OURS not in field.methods or not rivals:
        return None
    scores = {m: {cell: _percent(bench, m, cell) for cell in field.cells} for m in field.methods}
    best = max(rivals, key=lambda m: statistics.fmean(scores[m].values()))
    by_cell = {cell: max(scores[m][cell] for m in rivals) for cell in field.cells}
    rows = []
    for ipc in [None, *sorted({cell.ipc for cell in field.cells})]:
        own = {cell: score for cell, score in scores[OURS].items() if ipc in (None, cell.ipc)}
        against = [_difference(own, other) for other in (scores[best], by_cell)]
        stated = f"+{PUBLISHED[ipc]:g}" if ipc in PUBLISHED else ""
        rows.append(["all ipc" if ipc is None else f"ipc {ipc}", str(len(own)), *map(points, against), stated])
    missing = [m for m in earlier if m not in rivals]
    return [
        f"`{OURS}` minus earlier trajectory methods ({joined(rivals)}), in points of balanced accuracy, averaged over "
        f"cells, with the 95 % interval that the cells' differences give. {best} is the best of them on average over "
        "these cells. The best by cell is another one from cell to cell, chosen in hindsight and with its luck: the "
        "harder comparison. Both choices were made on these scores; the paper's figures are of its own datasets."
        + (f" Left out, with scores in too few cells: {joined(missing)}." if missing else ""),
        "",
        *table(["over", "cells", f"{OURS} − {best}", f"{OURS} − best by cell", "paper states"], rows),
        "",
        f"Over {counted(len(field.cells))}: {_verdict(best, _difference(scores[OURS], scores[best]))} "
        f"{_verdict('the best by cell', _difference(scores[OURS], by_cell))}",
    ]


def _difference(more: dict[Cell, float], less: dict[Cell, float]) -> Difference:
    return paired_difference(list(more.values()), [less[cell] for cell in more], TIE)


def _verdict(other: str, difference: Difference) -> str:
    shown = f"{abs(difference.mean):.1f} points"
    if abs(difference.mean) < TIE:
        return f"{OURS} is level with {other}."
    if math.isnan(difference.low):
        noise = "one cell can't say whether by more than noise"
    else:
        noise = "the interval holds 0" if difference.low <= 0 <= difference.high else "the interval leaves 0 out"
    return f"{OURS} is {'ahead of' if difference.mean > 0 else 'behind'} {other} by {shown} on average; {noise}."


def pairs(bench: Bench, order: Sequence[str], condition: str = UNIFIED) -> list[str] | None:
    """ptm against every other method, cell by cell, under a condition; None where there is nothing to compare."""
    others = [m for m in order if m in bench.methods and m != OURS]
    scores: dict[str, list[tuple[float, float]]] = {}
    both: dict[str, list[Cell]] = {}
    for m in others if OURS in bench.kinds else ():
        for cell in bench.cells:
            pair = _percent(bench, OURS, cell, condition), _percent(bench, m, cell, condition)
            if not any(map(math.isnan, pair)):
                scores.setdefault(m, []).append(pair)
                both.setdefault(m, []).append(cell)
    if not both:
        return None
    found = {m: paired_difference([a for a, _ in of], [b for _, b in of], TIE) for m, of in scores.items()}
    p_values = {m: signed_rank_p([a - b for a, b in of]) for m, of in scores.items()}
    corrected = holm({m: p for m, p in p_values.items() if p is not None})
    over = {m: _over_datasets(cells, scores[m]) for m, cells in both.items()}
    rows = []
    for m, difference in found.items():
        p = p_values[m]
        tested = [NONE, NONE] if p is None else [_probability(p), _probability(corrected[m])]
        cells = f"{difference.wins} / {difference.ties} / {difference.losses}"
        by_dataset = f"{points(over[m])}; {over[m].pairs}"
        rows.append([name(bench, m), str(difference.pairs), points(difference), by_dataset, cells, *tested])
    return [
        f"`{OURS}` minus each other method, in points of balanced accuracy, with 95 % intervals; cells won, tied (less "
        f"than {TIE:g} points apart) and lost; p of Wilcoxon's signed-rank test over cells, alone and corrected by "
        "Holm for the number of methods.",
        "",
        "A pair is a cell, the mean over its seeds, as seed 1 of one method has nothing to do with seed 1 of another. "
        "Cells of a dataset share its test split; the interval over datasets, where each counts once, is the more "
        f"careful one. Fewer than {FEWEST_PAIRS} cells can't reach 5 % and are not tested.",
        "",
        *table(["against", "cells", "difference", "over datasets", "won / tied / lost", "p", "p, Holm"], rows),
        "",
        _in_words(found, over, corrected),
    ]


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _over_datasets(cells: Sequence[Cell], scores: Sequence[tuple[float, float]]) -> Difference:
    """Over the datasets' means."""
    own: dict[str, list[float]] = {}
    for cell, (a, b) in zip(cells, scores, strict=True):
        own.setdefault(cell.dataset, []).append(a - b)
    means = [statistics.fmean(differences) for differences in own.values()]
    return paired_difference(means, [0.0] * len(means))


def _in_words(found: dict[str, Difference], over: dict[str, Difference], corrected: dict[str, float]) -> str:
    real = {m: d for m, d in found.items() if corrected.get(m, 1) < SIGNIFICANT}
    firm = "More than noise over cells at 5 % after the correction"
    groups = {
        f"{firm}: {OURS} ahead of": [m for m, d in real.items() if d.mean > 0],
        f"{firm}: {OURS} behind": [m for m, d in real.items() if d.mean <= 0],
        "Not more than noise: the difference to": [m for m in corrected if m not in real],
        "Too few cells to say: the difference to": [m for m in found if m not in corrected],
    }
    said = []
    for words, methods in groups.items():
        # An interval over one dataset is none, and its ends compare as false.
        agree = joined([m for m in methods if (over[m].low > 0 if found[m].mean > 0 else over[m].high < 0)]) or "none"
        careful = f"; of these, the interval over datasets agrees for {agree}" if words.startswith(firm) else ""
        said += [f"{words} {joined(methods)}{careful}."] if methods else []
    return " ".join(said)
