"""The table of a bench, asked by method, cell and condition; and what of it can be averaged fairly."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from ptm_ray.errors import DataError

UNIFIED, PUBLISHED, NO_AUGMENTATION = "unified", "published", "no-augmentation"
HARD_LABELS, TWIN, EQUAL_STEPS = "hard-labels", "twin", "equal-steps"
#: The main figure.
METRIC = "balanced_accuracy"
#: The kind of the method that trains on all real images, and the ipc that its rows have.
FULL, FULL_IPC = "full", 0
RANDOM = "random"
#: The kind of methods that match classes.
MATCHING = "matching"

Row = Mapping[str, Any]
#: Seed → network → its rows, one an evaluation seed.
Runs = Mapping[int, Mapping[str, Sequence[Row]]]
#: Method, dataset, ipc, distillation seed.
Wanted = tuple[str, str, int, int]


class Cell(NamedTuple):
    """One task, that every method is set: a dataset and a number of images per class."""

    dataset: str
    ipc: int


class Pair(NamedTuple):
    """A mean score and that of the same evaluation networks, `networks` of them, trained in another way."""

    unified: float
    other: float
    networks: int


class Average(NamedTuple):
    """A mean over `cells` cells; `marked` where other methods' means are over other ones."""

    mean: float
    cells: int
    marked: bool


@dataclass(frozen=True)
class Bench:
    """What has been measured and what was wanted.

    `runs`: method, cell, condition → those without an error. `networks`: those that a score is the mean over.
    `wanted`: method, cell → seeds. `idle`: methods without any row, which no table shows.
    `outdated`: runs that are of other settings, images or version than is asked for now.
    """

    suite: str
    kinds: Mapping[str, str]
    cells: tuple[Cell, ...]
    networks: tuple[str, ...]
    soft: frozenset[str]
    runs: Mapping[tuple[str, Cell, str], Runs]
    wanted: Mapping[tuple[str, Cell], frozenset[int]]
    failed: tuple[Row, ...]
    idle: tuple[str, ...] = ()
    outdated: tuple[Wanted, ...] = ()

    @property
    def methods(self) -> list[str]:
        """All but full data."""
        return [name for name, kind in self.kinds.items() if kind != FULL]

    @property
    def full(self) -> str:
        """The name of the method that trains on all real images, whether there is one or not."""
        return next((name for name, kind in self.kinds.items() if kind == FULL), FULL)

    @property
    def datasets(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(cell.dataset for cell in self.cells))

    @property
    def ipcs(self) -> list[int]:
        """From few to many."""
        return sorted({cell.ipc for cell in self.cells})

    def place(self, method: str, cell: Cell) -> Cell:
        """Where the method's rows for this cell lie: full data is the same for every ipc."""
        return Cell(cell.dataset, FULL_IPC) if self.kinds.get(method) == FULL else cell

    def networks_of(self, *conditions: str) -> tuple[str, ...]:
        """Those that have been trained in each of these conditions, by whatever method."""
        return tuple(n for n in self.networks if all(n in self._trained.get(c, ()) for c in conditions))

    @cached_property
    def _trained(self) -> dict[str, set[str]]:
        trained: dict[str, set[str]] = {}
        for (_, _, condition), runs in self.runs.items():
            trained.setdefault(condition, set()).update(*runs.values())
        return trained

    def values(
        self,
        method: str,
        cell: Cell,
        metric: str = METRIC,
        condition: str = UNIFIED,
        networks: Sequence[str] | None = None,
        evaluation_seeds: Collection[int] | None = None,
    ) -> dict[int, float]:
        """Seed → mean over networks of the means over evaluation seeds (all, or those given).

        A seed that lacks one of the networks is left out: some networks reach more than others, on any set.
        """
        needed = self.networks if networks is None else networks
        own = {}
        for seed, by_network in sorted(self.runs.get((method, self.place(method, cell), condition), {}).items()):
            rows = [
                [row for row in by_network.get(n, ()) if evaluation_seeds is None or _seed_of(row) in evaluation_seeds]
                for n in needed
            ]
            found = [[row[metric] for row in of_one if _is_number(row.get(metric))] for of_one in rows]
            if needed and all(found):
                own[seed] = statistics.fmean(map(statistics.fmean, found))
        return own

    def mean(
        self,
        method: str,
        cell: Cell,
        metric: str = METRIC,
        condition: str = UNIFIED,
        networks: Sequence[str] | None = None,
        evaluation_seeds: Collection[int] | None = None,
    ) -> float | None:
        """Mean of `values` over seeds."""
        values = self.values(method, cell, metric, condition, networks, evaluation_seeds)
        return statistics.fmean(values.values()) if values else None

    def repetitions(self, method: str, cell: Cell) -> list[float]:
        """The main figure of each seed; full data, which nothing is drawn for, has its networks' seeds instead."""
        if self.kinds[method] != FULL:
            return list(self.values(method, cell).values())
        found: dict[tuple[int, int], dict[str, float]] = {}
        for seed, by_network in self.runs.get((method, self.place(method, cell), UNIFIED), {}).items():
            for row in (row for network in self.networks for row in by_network.get(network, ())):
                if _is_number(row[METRIC]):
                    found.setdefault((seed, row["evaluation_seed"]), {})[row["network"]] = row[METRIC]
        return [statistics.fmean(own.values()) for own in found.values() if len(own) == len(self.networks)]

    def recalls(self, method: str, cells: Collection[Cell]) -> list[float]:
        """Of each class, the mean over the cells of the means over seeds, networks and evaluation seeds."""
        found = []
        for cell in cells:
            runs = self.runs.get((method, self.place(method, cell), UNIFIED), {})
            rows = [row for of in runs.values() for network in self.networks for row in of.get(network, ())]
            own = [row["recalls"] for row in rows if row.get("recalls") and all(map(_is_number, row["recalls"]))]
            if own:
                found.append([statistics.fmean(of_class) for of_class in zip(*own, strict=True)])
        return [statistics.fmean(of_class) for of_class in zip(*found, strict=True)]

    def paired(self, method: str, cell: Cell, condition: str) -> Pair | None:
        """The unified score and that of another condition, over the networks that have both: those of one seed begin
        alike and see the same batches.
        """
        unified, other = (self._by_network(method, cell, c) for c in (UNIFIED, condition))
        both = sorted(unified.keys() & other.keys())
        if not both:
            return None
        return Pair(statistics.fmean(unified[k] for k in both), statistics.fmean(other[k] for k in both), len(both))

    def evaluation_seeds(self, method: str, cell: Cell, *conditions: str) -> set[int]:
        """Those of the networks that have been trained in each of these conditions."""
        trained = [{seed for _, _, seed in self._by_network(method, cell, c)} for c in conditions]
        return set.intersection(*trained)

    def _by_network(self, method: str, cell: Cell, condition: str) -> dict[tuple[int, str, int], float]:
        runs = self.runs.get((method, self.place(method, cell), condition), {})
        rows = (row for by_network in runs.values() for own in by_network.values() for row in own)
        found = {(row["seed"], row["network"], _seed_of(row)): row[METRIC] for row in rows}
        return {key: score for key, score in found.items() if _is_number(score)}

    def own_cells(self, method: str) -> list[Cell]:
        """The cells that the method is wanted in, all where nothing is said of it; for full data one a dataset."""
        cells = list(dict.fromkeys(self.place(method, cell) for cell in self.cells))
        return [cell for cell in cells if (method, cell) in self.wanted] or cells

    def complete(self, method: str) -> int:
        """How many of `own_cells` have all the seeds that are wanted."""
        seeds = {cell: self.values(method, cell).keys() for cell in self.own_cells(method)}
        return sum(bool(own) and self.wanted.get((method, cell), own) <= own for cell, own in seeds.items())

    def made_by(self, column: str) -> list[str | None]:
        """What the rows' `column` says of what made them, each once; None where some say nothing."""
        rows = (row for runs in self.runs.values() for of in runs.values() for own in of.values() for row in own)
        return sorted({row.get(column) for row in rows}, key=lambda said: (said is None, said))

    def has_failed(self, method: str) -> bool:
        """Whether any of its unified runs did."""
        return any(row["method"] == method and row["condition"] in (UNIFIED, None) for row in self.failed)


@dataclass(frozen=True)
class Field:
    """Methods that are compared with each other, and the cells in which every one of them has a score."""

    methods: tuple[str, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, bench: Bench, methods: Sequence[str]) -> "Field":
        """Those of the methods with a score in more than half of the cells, and the cells that all of those have.

        Means over different cells say more about the cells than about the methods. One that has hardly begun must not
        take the others' cells away, though: it is left out of the field and its own mean is marked.
        """
        has = {m: {c for c in bench.cells if bench.mean(m, c) is not None} for m in methods}
        compared = tuple(m for m in methods if 2 * len(has[m]) > len(bench.cells))
        shared = tuple(c for c in bench.cells if compared and all(c in has[m] for m in compared))
        return cls(compared if shared else (), shared)

    def average(self, bench: Bench, method: str, cells: Collection[Cell], metric: str = METRIC) -> Average | None:
        """The method's mean over those of the cells that the field shares, else over those that it has itself."""
        asked, compared = self._cells_for(bench, method, cells)
        found = [value for cell in asked if (value := bench.mean(method, cell, metric)) is not None]
        return Average(statistics.fmean(found), len(found), not compared or len(found) < len(asked)) if found else None

    def deviation(self, bench: Bench, method: str, cells: Collection[Cell]) -> float | None:
        """Standard deviation, over the seeds that all cells of `average` have, of the mean over them; None for one."""
        asked, _ = self._cells_for(bench, method, cells)
        by_cell = [own for cell in asked if (own := bench.values(method, cell))]
        seeds = set.intersection(*(set(own) for own in by_cell)) if by_cell else set()
        means = [statistics.fmean(own[seed] for own in by_cell) for seed in sorted(seeds)]
        return statistics.stdev(means) if len(means) > 1 else None

    def _cells_for(self, bench: Bench, method: str, cells: Collection[Cell]) -> tuple[list[Cell], bool]:
        """Those of the cells that a mean of the method is over, and whether it can be compared with others'."""
        shared = [cell for cell in self.cells if cell in cells]
        compared = bool(shared) and (method in self.methods or method == bench.full)
        return (shared if compared else list(cells)), compared

    def ordered(self, bench: Bench) -> list[str]:
        """All methods, the best of the field first, then the others, then full data."""
        averages = {m: self.average(bench, m, bench.cells) for m in bench.methods}

        def key(method: str) -> tuple[bool, float]:
            found = averages[method]
            return method not in self.methods, -found.mean if found else math.inf

        return sorted(bench.methods, key=key) + [m for m in bench.kinds if m not in bench.methods]


def read_bench(
    table: pa.Table | Iterable[Row],
    kinds: Mapping[str, str],
    *,
    networks: Sequence[str] | None = None,
    soft_labels: Collection[str] = (),
    without_experts: Collection[str] = (),
    wanted: Iterable[Wanted] | None = None,
    outdated: Iterable[Wanted] = (),
) -> Bench:
    """The table, sorted into cells. See `write_bench` for what may be left out and what then stands for it."""
    rows = _charged(table.to_pylist() if isinstance(table, pa.Table) else list(table), without_experts)
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    if len(suites) > 1:
        raise DataError(f"the table holds several suites ({', '.join(suites)}); report one at a time")
    begun = dict.fromkeys(row["method"] for row in rows)
    idle = tuple(method for method in kinds if method not in begun)
    kinds = {method: kind for method, kind in kinds.items() if method in begun}
    kinds |= {method: "other" for method in begun if method not in kinds}
    runs: dict[tuple[str, Cell, str], dict[int, dict[str, list[Row]]]] = {}
    for row in rows:
        if not row["error"]:
            own = runs.setdefault((row["method"], Cell(row["dataset"], row["ipc"]), row["condition"]), {})
            own.setdefault(row["seed"], {}).setdefault(row["network"], []).append(row)
    asked = {} if wanted is None else _by_cell((m, Cell(d, i), s) for m, d, i, s in wanted)
    seen = [cell for _, cell in asked] + [Cell(row["dataset"], row["ipc"]) for row in rows]
    in_order = {name: at for at, name in enumerate(dict.fromkeys(cell.dataset for cell in seen))}
    cells = sorted({c for c in seen if c.ipc != FULL_IPC}, key=lambda c: (in_order[c.dataset], c.ipc))
    seeds = _by_cell((row["method"], cell, row["seed"]) for row in rows for cell in _cells_of(row, kinds, cells))
    trained = dict.fromkeys(row["network"] for row in rows if row["condition"] == UNIFIED and not row["error"])
    relabelled = {row["method"] for row in rows if row["condition"] in (HARD_LABELS, TWIN)}
    return Bench(
        suite=suites[0] if suites else "",
        kinds=kinds,
        cells=tuple(cells),
        networks=tuple(trained) if networks is None else tuple(networks),
        soft=frozenset(soft_labels) | relabelled,
        runs=runs,
        wanted=seeds if wanted is None else asked,
        failed=tuple(row for row in rows if row["error"]),
        idle=idle,
        outdated=tuple(outdated),
    )


def _charged(rows: Sequence[Row], without_experts: Collection[str]) -> list[Row]:
    """The rows, each charged for the experts that its method asks for: those that were found took what training the
    same of them took for another row, if for any.
    """
    took = {_experts(row): row["experts_s"] for row in rows if _is_number(row["experts_s"])}
    charged: list[Row] = []
    for row in rows:
        if row["method"] in without_experts:
            charged.append({**row, "experts_s": 0.0, "buffer_bytes": 0})
        elif row["experts_s"] is None and row.get("experts"):
            charged.append({**row, "experts_s": took.get(_experts(row))})
        else:
            charged.append(row)
    return charged


def _experts(row: Row) -> tuple[str | None, int | None]:
    """Their kind and how much they hold, which says how many there are."""
    return row.get("experts"), row["buffer_bytes"]


def _cells_of(row: Row, kinds: Mapping[str, str], cells: Sequence[Cell]) -> Iterable[Cell]:
    """Without a list of what is wanted, a seed that a method has anywhere is wanted everywhere."""
    if kinds[row["method"]] == FULL:
        return [Cell(name, FULL_IPC) for name in dict.fromkeys(cell.dataset for cell in cells)]
    return cells


def _by_cell(wanted: Iterable[tuple[str, Cell, int]]) -> dict[tuple[str, Cell], frozenset[int]]:
    found: dict[tuple[str, Cell], set[int]] = {}
    for method, cell, seed in wanted:
        found.setdefault((method, cell), set()).add(seed)
    return {key: frozenset(seeds) for key, seeds in found.items()}


def _seed_of(row: Row) -> int:
    """Of the network that was trained."""
    seed: int = row["evaluation_seed"]
    return seed


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
