"""What a person sees of a bench: `results.md` and its pictures."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from ptm_ray.report import bench_figures
from ptm_ray.report.bench_cells import EQUAL_STEPS, Bench, Field, Row, Wanted, read_bench
from ptm_ray.report.bench_claims import claim, pairs
from ptm_ray.report.bench_conditions import conditions, robustness
from ptm_ray.report.bench_tables import (
    by_dataset,
    cost,
    counted,
    failed,
    made_by,
    mitigation,
    overview,
    recall_by_class,
    worst_recall,
)
from ptm_ray.store import atomic

RESULTS, OVER_IPC, AGAINST_COST = "results.md", "accuracy-over-ipc.png", "accuracy-against-cost.png"


def write_bench(
    folder: Path,
    table: pa.Table | Iterable[Row],
    kinds: Mapping[str, str],
    *,
    networks: Sequence[str] | None = None,
    soft_labels: Collection[str] = (),
    without_experts: Collection[str] = (),
    wanted: Iterable[Wanted] | None = None,
    outdated: Iterable[Wanted] = (),
) -> tuple[str, ...]:
    """`results.md` and the pictures that the table is enough for, into the folder; their names.

    `table`: a row for each trained evaluation network (scores are fractions), or for a failed run with its error.
    `kinds`: method → trajectory, variant, matching, selection or full. What may be left out: `networks` that a score
    is the mean over (then all that were trained by the unified recipe), methods with `soft_labels` (then those with
    rows of hard labels or twins), methods that ask for no expert, `without_experts`, whatever a table of an earlier
    version charges them, and the runs `wanted`: method, dataset, ipc (0 for full data), seed (then every
    seed that a method has anywhere, in every cell). `outdated`: runs that are of other settings than is asked for now,
    which the report says. Raises `DataError` for a table of several suites and `StoreError`
    where the folder can't be written.
    """
    bench = read_bench(
        table,
        kinds,
        networks=networks,
        soft_labels=soft_labels,
        without_experts=without_experts,
        wanted=wanted,
        outdated=outdated,
    )
    field = Field.of(bench, bench.methods)
    pictures = _draw(folder, bench, field)
    atomic.write_text(folder / RESULTS, markdown(bench, field, pictures))
    return (RESULTS, *pictures)


def _draw(folder: Path, bench: Bench, field: Field) -> tuple[str, ...]:
    if not any(bench.mean(method, cell) is not None for method in bench.methods for cell in bench.cells):
        return ()
    with atomic.replacing(folder / AGAINST_COST) as temporary:
        bench_figures.against_cost(bench, field, temporary)
    if len(bench.ipcs) == 1:
        return (AGAINST_COST,)
    with atomic.replacing(folder / OVER_IPC) as temporary:
        bench_figures.over_ipc(bench, field, temporary)
    return OVER_IPC, AGAINST_COST


def markdown(bench: Bench, field: Field, pictures: Collection[str] = ()) -> str:
    """The text of `results.md`; a part that there is nothing to say in is left out."""
    order = field.ordered(bench)
    parts = {
        "Overview": overview(bench, field) + _picture(AGAINST_COST, "Accuracy against cost", pictures),
        "By dataset": by_dataset(bench, field) + _picture(OVER_IPC, "Accuracy over images per class", pictures),
        "The claim": claim(bench),
        "ptm against every other method": pairs(bench, order),
        "ptm against every other method, at equal outer steps": pairs(bench, order, EQUAL_STEPS),
        "Tracks and conditions": conditions(bench, field),
        "Robustness": robustness(bench, field),
        "Worst-class recall": worst_recall(bench, field),
        "Recall by class": recall_by_class(bench, field),
        "Cost": cost(bench, field),
        "Overlap mitigation": mitigation(bench, field),
        "Failed": failed(bench) if bench.failed else None,
    }
    lines = [f"# Bench {bench.suite}".rstrip(), "", _what(bench)]
    for title, part in parts.items():
        if part is not None:
            lines += ["", f"## {title}", "", *part]
    return "\n".join(lines) + "\n"


def _what(bench: Bench) -> str:
    shown = ", ".join(bench.networks) or "none yet"
    tasks = f"{counted(len(bench.cells))}: {', '.join(bench.datasets)}"
    ipcs = ", ".join(map(str, bench.ipcs))
    what = f"{counted(len(bench.methods), 'method')} on {tasks}; images per class (ipc) {ipcs}. Networks: {shown}."
    idle = f" Not run yet: {', '.join(bench.idle)}." if bench.idle else ""
    return " ".join([what + idle, *made_by(bench)])


def _picture(name: str, words: str, pictures: Collection[str]) -> list[str]:
    return ["", f"![{words}]({name})"] if name in pictures else []
