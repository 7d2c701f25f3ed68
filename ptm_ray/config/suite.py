"""What a benchmark is: datasets × images per class × methods × seeds, one budget and one protocol for all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from ptm_ray.config.base import Settings
from ptm_ray.config.files import read_table, resolve
from ptm_ray.config.models import DistillConfig
from ptm_ray.config.parts import Positive, Rate
from ptm_ray.config.presets import KINDS, OURS, TRAJECTORY, VARIANT
from ptm_ray.errors import ConfigError, did_you_mean

#: How a set is scored, beside `unified`, the main figure: one recipe for all, after the time budget.
Condition = Literal["unified", "published", "equal-steps", "hard-labels", "twin", "no-augmentation"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
#: Kinds of methods that learn nothing: all of the training images, whatever ipc says, and some of them as they are.
FULL, SELECTION = "full", "selection"
#: The kind of methods whose sets somebody has made elsewhere, the key of a method's table that says where they lie, and
#: what stands for what in it.
GIVEN, SETS, PLACES = "given", "sets", ("{dataset}", "{ipc}", "{seed}")


@dataclass(frozen=True)
class Cell:
    """One distillation of a benchmark, by name; `ipc` is 0 for full data."""

    dataset: str
    ipc: int
    method: str
    seed: int

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What its rows in a table have in common."""
        return self.dataset, self.ipc, self.method, self.seed

    @property
    def name(self) -> str:
        """Good for a folder."""
        return f"{Path(self.dataset).stem}-ipc{self.ipc}-{self.method}-{self.seed}"


class SuiteConfig(Settings):
    """A benchmark, whole."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What tables call it."""
    datasets: tuple[str, ...] = Field(min_length=1)
    """Datasets as `--data` takes them; `pathmnist@64` is one at 64 pixels. Files are looked for in --data-root too."""
    ipc: tuple[Positive, ...] = Field(min_length=1)
    """Synthetic images per class."""
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """A list of methods, or a table of variants: name → settings that differ from the preset of the method of that
    name, or of the one given as `method`. A method of one's own is `{ sets = "DIR/{dataset}-{ipc}-{seed}" }`: where the
    sets lie that it has made, each as `ptm-ray evaluate` takes one; they are scored as all others are."""
    seeds: Positive = 2
    """Distillations of each; of random images, draws."""
    budget_minutes: Rate | None = None
    """Wall time of each distillation on its one core, after shared experts; by default until its outer steps are
    done."""
    equal_steps: Positive | None = None
    """Outer steps after which every set is scored as well, so that methods can be compared at equal numbers of them."""
    conditions: tuple[Condition, ...] = CONDITIONS
    """How sets are scored. unified: one recipe. published: at the inner lr that the set learned, as trajectory methods
    publish it; others learn none. equal-steps: after `equal_steps`. hard-labels, twin (of sets with soft labels): with
    their labels made hard; random real images with the set's labels. no-augmentation: unified without DSA."""
    extra_seeds: Positive = 1
    """Evaluation networks of each condition but `unified`, which has `settings.evaluation.seeds`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of every cell, as in a settings file."""
    dataset_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of one dataset's cells, by its name in `datasets`: whether its images have sides, say."""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        methods = values.get("methods") if isinstance(values, Mapping) else None
        if isinstance(methods, list | tuple):
            _no_duplicates("methods", methods)
            methods = {str(name): {} for name in methods}
        if not isinstance(methods, Mapping):
            return values
        named = {
            name: {"method": name, **table} if isinstance(table, Mapping) and SETS not in table else table
            for name, table in methods.items()
        }
        return {**values, "methods": named}

    @model_validator(mode="after")
    def _no_cell_twice(self) -> "SuiteConfig":
        _no_duplicates("datasets", self.datasets)
        _no_duplicates("ipc", self.ipc)
        if "unified" not in self.conditions:
            raise ValueError("conditions lack unified, the main figure; add it")
        for dataset in self.dataset_settings:
            if dataset not in self.datasets:
                raise ValueError(
                    f"dataset_settings has {dataset!r}, which datasets has not; {did_you_mean(dataset, self.datasets)}"
                )
        stems = [Path(dataset).stem for dataset in self.datasets]
        _no_duplicates("datasets, by the names of their files,", stems)
        for name, table in self.methods.items():
            if SETS in table:
                self._check_places(name, table)
        asked = [repr(sorted(table.items())) for table in self.methods.values()]
        for name, text in zip(self.methods, asked, strict=True):
            first = list(self.methods)[asked.index(text)]
            if first != name:
                raise ValueError(f"methods {first!r} and {name!r} are the same; take one of them out")
        return self

    def _check_places(self, name: str, table: Mapping[str, Any]) -> None:
        """That every cell has a set of its own."""
        where = table[SETS]
        if len(table) > 1 or not isinstance(where, str):
            raise ValueError(f"methods.{name}: sets is a path, and nothing else may stand beside it; got {table}")
        for placeholder, many in zip(PLACES, (len(self.datasets) > 1, len(self.ipc) > 1, False), strict=True):
            if many and placeholder not in where:
                raise ValueError(
                    f"methods.{name}.sets is {where!r}, the same for every cell; put {placeholder} in it, which stands "
                    "for the cell's own"
                )

    def set_of(self, cell: Cell) -> str | None:
        """Where the cell's set lies, if somebody has made it elsewhere."""
        where = self.methods[cell.method].get(SETS)
        if where is None:
            return None
        own = (Path(cell.dataset).stem, str(cell.ipc), str(cell.seed))
        for placeholder, value in zip(PLACES, own, strict=True):
            where = where.replace(placeholder, value)
        return str(where)

    def only(self, methods: Sequence[str]) -> "SuiteConfig":
        """The same of these methods alone. Raises `ConfigError` for one that it has not."""
        for method in methods:
            if method not in self.methods:
                raise ConfigError(f"suite {self.name} has no method {method!r}; {did_you_mean(method, self.methods)}")
        return self.model_copy(update={"methods": {method: self.methods[method] for method in methods}})

    def check(self) -> "SuiteConfig":
        """Itself, if every cell's settings can be. Raises `ConfigError` with near names."""
        for name in self.methods:
            for dataset in dict.fromkeys((self.datasets[0], *self.dataset_settings)):
                for ipc in self.ipc:
                    try:
                        self.config(Cell(dataset, ipc, name, 0))
                    except ConfigError as error:
                        where = f" on {dataset}" if dataset in self.dataset_settings else ""
                        raise ConfigError(f"methods.{name}{where}, ipc {ipc}: {error}") from None
        return self

    def cells(self) -> list[Cell]:
        """All of them: seed by seed and ipc by ipc, so that what is done early has all methods beside each other."""
        found = [
            Cell(dataset, ipc, method, seed)
            for seed in range(self.seeds)
            for ipc in self.ipc
            for dataset in self.datasets
            for method in self.methods
            if self.kind(method) != FULL and (seed == 0 or PLACES[2] in self.methods[method].get(SETS, PLACES[2]))
        ]
        full = [method for method in self.methods if self.kind(method) == FULL]
        return [*(Cell(dataset, 0, method, 0) for dataset in self.datasets for method in full), *found]

    def kind(self, method: str) -> str:
        """trajectory, variant (of ptm: it came with it and not before it), matching (of gradients or distributions),
        selection (real images as they are), given (made elsewhere) or full.
        """
        if SETS in self.methods[method]:
            return GIVEN
        base = str(self.methods[method]["method"])
        return VARIANT if base == OURS != method else KINDS.get(base, TRAJECTORY)

    def kinds(self) -> dict[str, str]:
        """Of all methods."""
        return {method: self.kind(method) for method in self.methods}

    def config(self, cell: Cell) -> DistillConfig:
        """The settings of a cell. Raises `ConfigError`."""
        data, _, size = cell.dataset.partition("@")
        if size and not size.isdigit():
            raise ConfigError(f"dataset {cell.dataset!r}: what follows @ is a size in pixels, such as {data}@64")
        own: dict[str, Any] = {"data": data, "ipc": max(1, cell.ipc), "seed": cell.seed}
        if size:
            own["size"] = int(size)
        # Full data is what sets are compared with, no way to make one: its networks are trained by the same settings.
        # Nor are sets that are given.
        kind = self.kind(cell.method)
        method = self.methods[cell.method] if kind not in (FULL, GIVEN) else {"method": "random"}
        if kind == GIVEN:
            # No image of the dataset is asked for, however few it has of a class.
            method = {**method, "images": {"init": "noise"}}
        if kind in (FULL, SELECTION, GIVEN):
            own["outer_steps"] = 0
        return resolve(self.settings, self.dataset_settings.get(cell.dataset, {}), method, own)


def read_suite(path: Path) -> SuiteConfig:
    """A suite from a TOML or JSON file. Raises `ConfigError` in one line."""
    return SuiteConfig.of(read_table(path)).check()


def _no_duplicates(what: str, values: Sequence[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{what} name {twice[0]!r} twice; once is enough")
