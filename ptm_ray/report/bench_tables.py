"""Tables of a bench: scores by method and dataset, worst-class recall, cost, what failed."""

import statistics
from collections.abc import Collection, Sequence

from ptm_ray.config.presets import OURS
from ptm_ray.evaluation.comparison import mean_ranks
from ptm_ray.evaluation.protocol import summary
from ptm_ray.report.bench_cells import FULL, Average, Bench, Cell, Field
from ptm_ray.report.tables import cell as mean_and_std
from ptm_ray.report.tables import table

NONE = "–"
#: Longest error that a line of failed cells shows.
ERROR_LENGTH = 200


def name(bench: Bench, method: str) -> str:
    """The method as tables show it."""
    if bench.kinds[method] == FULL:
        return "full data"
    return f"**{method}**" if method == OURS else method


def counted(number: int, one: str = "cell") -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def percent(average: Average | None, deviation: float | None = None) -> str:
    """A mean in percent, ± its deviation; one over other cells than the other methods' has a star and says over how
    many.
    """
    if average is None:
        return NONE
    shown = f"{100 * average.mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
    return shown + (f"\\* ({average.cells})" if average.marked else "")


def overview(bench: Bench, field: Field) -> list[str]:
    """Mean balanced accuracy at each ipc and over all cells ± its deviation over seeds, mean rank, cells complete."""
    ranks = mean_ranks({m: [bench.mean(m, cell) or 0.0 for cell in field.cells] for m in field.methods})
    rows = []
    for method in field.ordered(bench):
        over = [*(_at(bench, ipc) for ipc in bench.ipcs), list(bench.cells)]
        means = [percent(field.average(bench, method, own), field.deviation(bench, method, own)) for own in over]
        rank = f"{ranks[method]:.1f}" if method in ranks else NONE
        done = f"{bench.complete(method)} of {len(bench.own_cells(method))}"
        shown = name(bench, method) + ("†" if bench.has_failed(method) else "")
        rows.append([shown, bench.kinds[method], *means, rank, done])
    head = ["method", "kind"]
    head += [f"ipc {ipc}{_of(field, _at(bench, ipc))}" for ipc in bench.ipcs]
    head += [f"all{_of(field, bench.cells)}", "mean rank", "cells complete"]
    return [
        "Balanced accuracy on the test split in percent, every set trained on by one recipe (`unified`); the best "
        "first. A score is the mean over networks, then over the distillation's seeds; a cell is a dataset at one ipc. "
        "± is the standard deviation over these seeds of the mean over cells.",
        "",
        "Means and ranks are over the cells that all compared methods have: those methods with a score in more than "
        "half of the cells. A mean marked \\* is over as many cells as it says: don't compare it. Cells count from "
        "their first seed on and are complete with all. † marks methods with failed runs, whose means leave those out "
        "and may flatter.",
        "",
        *table(head, rows),
    ]


def _at(bench: Bench, ipc: int) -> list[Cell]:
    return [cell for cell in bench.cells if cell.ipc == ipc]


def _of(field: Field, cells: Collection[Cell]) -> str:
    """How many of the cells the field shares, where that isn't all."""
    shared = sum(cell in cells for cell in field.cells)
    return "" if shared == len(cells) else f" ({shared} of {counted(len(cells))})"


def by_dataset(bench: Bench, field: Field) -> list[str]:
    """Methods by ipc, a table for each dataset, or by dataset in one table where there is one ipc; mean ± standard
    deviation over distillation seeds.
    """
    lines = [
        "Balanced accuracy in percent, mean ± standard deviation over the seeds of the distillation (of `random`: over "
        "draws; of full data: over the networks' seeds). Each seed's value is the mean over its networks.",
    ]
    if OURS in bench.methods:
        lines[0] += f" ‡: {OURS} is behind it."

    def scores(cells: Sequence[Cell]) -> list[list[str]]:
        return [
            [name(bench, m), *(_over_seeds(bench, m, cell) + _ahead(bench, m, cell) for cell in cells)]
            for m in field.ordered(bench)
        ]

    if len(bench.ipcs) == 1:
        return [*lines, "", *table(["method", *(cell.dataset for cell in bench.cells)], scores(bench.cells))]
    for dataset in bench.datasets:
        cells = [cell for cell in bench.cells if cell.dataset == dataset]
        lines += ["", f"### {dataset}", "", *table(["method", *(f"ipc {cell.ipc}" for cell in cells)], scores(cells))]
    return lines


def _over_seeds(bench: Bench, method: str, cell: Cell) -> str:
    values = bench.repetitions(method, cell)
    if not values:
        return NONE
    wanted = 0 if bench.kinds[method] == FULL else len(bench.wanted.get((method, cell), ()))
    if len(values) == 1:
        seeds = " (one seed)" if wanted <= 1 else f" (1 of {wanted} seeds)"
        return f"{100 * values[0]:.1f}{seeds}"
    return mean_and_std(summary(values)) + (f" ({len(values)} of {wanted} seeds)" if len(values) < wanted else "")


def _ahead(bench: Bench, method: str, cell: Cell) -> str:
    """A mark where a way to make sets is ahead of ours by what is not rounded away."""
    theirs, ours = bench.mean(method, cell), bench.mean(OURS, cell)
    if bench.kinds[method] == FULL or theirs is None or ours is None:
        return ""
    return " ‡" if round(100 * theirs, 1) > round(100 * ours, 1) else ""


def worst_recall(bench: Bench, field: Field) -> list[str]:
    """Recall of the class that a network recognises worst, by dataset."""
    rows = []
    for method in field.ordered(bench):
        own = ([c for c in bench.cells if c.dataset == dataset] for dataset in bench.datasets)
        rows.append(
            [name(bench, method), *(percent(field.average(bench, method, cells, "worst_recall")) for cells in own)]
        )
    return [
        "Recall in percent of the class that each network recognises worst, mean over networks, seeds and the ipc that "
        "all compared methods have (\\*: over as many as it says).",
        "",
        *table(["method", *bench.datasets], rows),
    ]


def recall_by_class(bench: Bench, field: Field) -> list[str]:
    """Mean recall of each class, a table for each dataset."""
    lines = [
        "Recall in percent of each class, by its number, mean over networks, seeds and the ipc that the method has.",
    ]
    for dataset in bench.datasets:
        cells = [cell for cell in bench.cells if cell.dataset == dataset]
        by_method = {method: bench.recalls(method, cells) for method in field.ordered(bench)}
        classes = max(map(len, by_method.values()))
        rows = [
            [name(bench, method), *(f"{100 * recall:.1f}" for recall in own or ())] + [NONE] * (classes - len(own))
            for method, own in by_method.items()
        ]
        lines += ["", f"### {dataset}", "", *table(["method", *(f"class {k}" for k in range(classes))], rows)]
    return lines


def made_by(bench: Bench) -> list[str]:
    """Sentences on what made the rows: states of the code, processors; and which are not what is asked for now."""
    said = []
    codes, processors = bench.made_by("code"), [name for name in bench.made_by("processor") if name is not None]
    if states := sum(code is not None for code in codes):
        kinds = f", on {counted(len(processors), 'kind')} of processor ({'; '.join(processors)})" if processors else ""
        said.append(f"Rows are of {counted(states, 'state')} of the code{kinds}.")
        said += ["Of some rows it was not noted."] if None in codes else []
    if bench.outdated:
        runs = f"{counted(len(bench.outdated), 'run')} {'is' if len(bench.outdated) == 1 else 'are'}"
        methods = ", ".join(sorted({method for method, *_ in bench.outdated}))
        now = "of other settings, images or version than the suite asks for now"
        said.append(f"**{runs} {now}** ({methods}); the same command makes them again.")
    return said


def cost(bench: Bench, field: Field) -> list[str]:
    """What the unified sets took to make."""
    rows = []
    for method in (m for m in field.ordered(bench) if bench.kinds[m] != FULL):
        measured = [_measured(bench, method, column) for column in ("experts_s", "distillation_s", "outer_steps")]
        buffer = _measured(bench, method, "buffer_bytes")
        memory = [v for cell in bench.cells for v in bench.values(method, cell, "peak_memory_bytes").values()]
        shown = [_number(statistics.fmean(values)) if values else NONE for values in measured]
        shown.append(_number(max(memory) / 2**20) if memory else NONE)
        shown.append(_number(statistics.fmean(buffer) / 2**20) if buffer else NONE)
        cells = sum(bench.mean(method, cell) is not None for cell in bench.cells)
        rows.append([name(bench, method), *shown, str(cells)])
    return [
        "Of the unified sets: means over the cells that the method has; of the peak memory the largest. Experts that "
        "several methods share are counted for each of them, all of them even where a set only begins with what one "
        "has learned.",
        "",
        *table(
            ["method", "experts, s", "distillation, s", "outer steps", "peak memory, MiB", "buffer, MiB", "cells"], rows
        ),
    ]


def mitigation(bench: Bench, field: Field) -> list[str] | None:
    """What overlap mitigation did; None where it was never asked for."""
    rows = []
    for method in field.ordered(bench):
        for ipc in bench.ipcs:
            cells = [cell for cell in bench.cells if cell.ipc == ipc]
            asked, kept = (
                sum(round(value) for cell in cells for value in bench.values(method, cell, column).values())
                for column in ("cycles", "cycles_kept")
            )
            if asked:
                ratios = [
                    f"{statistics.fmean(found):.2f}" if (found := _of_seeds(bench, method, cells, column)) else NONE
                    for column in ("overlap_before", "overlap_after")
                ]
                rows.append([name(bench, method), str(ipc), f"{kept} of {asked}", " → ".join(ratios)])
    if not rows:
        return None
    return [
        "Cycles of overlap mitigation over all datasets and seeds, those that were kept (others left validation worse "
        "and were undone), and the mean overlap ratio before and after these; 1 is as varied as real images.",
        "",
        *table(["method", "ipc", "cycles kept", "overlap ratio"], rows),
    ]


def _of_seeds(bench: Bench, method: str, cells: Sequence[Cell], column: str) -> list[float]:
    return [value for cell in cells for value in bench.values(method, cell, column).values()]


def _measured(bench: Bench, method: str, column: str) -> list[float]:
    return [value for cell in bench.cells if (value := bench.mean(method, cell, column)) is not None]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == 0 or value >= 10 else f"{value:.2g}"


def failed(bench: Bench) -> list[str]:
    """A line for each failed cell."""
    lines = []
    for row in bench.failed:
        where = f"{row['dataset']}, ipc {row['ipc']}" if bench.kinds[row["method"]] != FULL else row["dataset"]
        reason = " ".join(row["error"].split())
        shortened = reason if len(reason) <= ERROR_LENGTH else f"{reason[: ERROR_LENGTH - 1]}…"
        condition = f" ({row['condition']})" if row["condition"] else ""
        lines.append(f"- {row['method']} on {where}, seed {row['seed']}{condition}: {shortened}")
    return [f"{counted(len(lines), 'run')} ended in an error and count in no mean.", "", *lines]


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])
