"""What a sweep is: settings that all its trials share, a space that they differ in, and how it is searched."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ptm_ray.config.base import Settings, merge
from ptm_ray.config.files import read_table, resolve
from ptm_ray.config.models import DistillConfig
from ptm_ray.config.parts import Count, Positive, Rate
from ptm_ray.errors import ConfigError

#: What decides which experts a run matches: they are trained before the trials, so that their values must be known.
#: Some methods have experts of their own.
EXPERT_SETTINGS = ("mirror", "experts", "network", "method")
#: What a trial can't take over from another's checkpoint, so that pbt can't exchange it.
FIXED_FROM_THE_START = (
    *EXPERT_SETTINGS,
    *("ipc", "seed", "schedule.start", "student.inner_lr", "student.inner_lr_by_segment"),
    *("overlap.enabled", "images.init", "images.optimiser", "images.soft_labels", "images.label_init", "images.ema"),
    *("matching.what", "matching.easy_base", "subsets"),
)
#: What no two trials differ in, and why.
SHARED = {
    "data": "a sweep has one dataset; give it among the settings",
    "size": "a sweep has one dataset; give it among the settings",
    "matchers": "a trial matches alone; take it out of the space",
}
#: Values listed, or a range.
Choices = tuple[Any, ...]


class Range(Settings):
    """Numbers between two bounds, both inclusive."""

    low: float
    """Least value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly, as befits rates and weights."""
    integer: bool = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; raise it above 0, or leave log out")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"bounds {self.low:g} and {self.high:g} of whole numbers must be whole")
        return self

    def value(self, number: float) -> float | int:
        """A number as the setting wants it: within the bounds, whole if it must be."""
        inside = min(self.high, max(self.low, number))
        return round(inside) if self.integer else inside


Dimension = Choices | Range


class SweepConfig(Settings):
    """A sweep, whole."""

    searcher: Literal["grid", "random", "optuna"] = "random"
    """grid: every combination of the values listed. random: drawn evenly. optuna: drawn where earlier trials did well
    (tree-structured Parzen estimator)."""
    trials: Positive = 16
    """random, optuna: how many trials; grid: how often every combination is tried (then by default once)."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """asha: trials that lag behind others at the same outer step are stopped. pbt: trials that lag go on from a copy of
    a better one, with its settings perturbed."""
    grace: Positive = 50
    """asha: outer steps before a trial may be stopped. pbt: outer steps between two exchanges."""
    metric: Literal["balanced_accuracy", "accuracy", "worst_recall"] = "balanced_accuracy"
    """What trials are compared by, on the validation split: the classes' mean recall, the share of all images, or the
    recall of the class that is recognised worst. (Which outer step's set a trial keeps, balanced accuracy decides.)"""
    stop_at: float | None = Field(default=None, gt=0, le=1)
    """A trial that has reached this score ends; by default none does."""
    budget_minutes: Rate | None = None
    """Wall time of each trial's distillation; by default until all outer steps are done."""
    cpus_per_trial: Rate = 1.0
    """CPUs that each trial holds."""
    gpus_per_trial: float = Field(default=0.0, ge=0)
    """GPUs that each trial holds, and each worker that trains experts; fractions share one."""
    evaluators: Positive = 1
    """Actors that score the trials' sets on the validation split. They hold no CPU of their own, so that trials can
    never wait for one that can't start; their work is some fifth of the trials'."""
    max_failures: Count = 2
    """How often a trial that died goes on from its checkpoint."""
    seed: Count = 0
    """Seed of the search; the trials' own is a setting like others. What pbt exchanges depends on the trials' speed."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of every trial, as in a settings file."""
    space: dict[str, Dimension]
    """Setting → its values, as a list or a range: `schedule.kind = ["progress", "count"]`,
    `overlap.weight = { low = 0.5, high = 16, log = true }`."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("space"), Mapping):
            flat = dict(_flatten(values["space"]))
            trials = {"trials": 1} if values.get("searcher") == "grid" and "trials" not in values else {}
            return {**values, **trials, "space": flat}
        return values

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        if not self.space:
            raise ValueError("space is empty; name at least one setting and its values")
        ranges = [name for name, dimension in self.space.items() if isinstance(dimension, Range)]
        if self.searcher == "grid" and ranges:
            raise ValueError(f"a grid needs values: {ranges[0]} is a range; list its values, or search at random")
        for name in self.space:
            if name in SHARED:
                raise ValueError(f"{name} can't be swept: {SHARED[name]}")
            if self.scheduler == "pbt" and _below(name, FIXED_FROM_THE_START):
                raise ValueError(f"pbt can't change {name} in mid-run; take it out of the space, or use asha")
        for name in ranges:
            if _below(name, EXPERT_SETTINGS):
                raise ValueError(
                    f"{name} is a range, but experts are trained before the trials, once for each value; "
                    "list its values"
                )
        if self.scheduler == "pbt" and self.searcher == "grid":
            raise ValueError("pbt perturbs settings of its own; search at random, or leave the scheduler out")
        for name, dimension in self.space.items():
            if isinstance(dimension, tuple) and not dimension:
                raise ValueError(f"{name} has no values; list at least one")
        return self

    def config(self, chosen: Mapping[str, Any]) -> DistillConfig:
        """The settings of the trial that has `chosen`, setting → value. Raises `ConfigError`."""
        return resolve(self.settings, nested({name: self.value(name, value) for name, value in chosen.items()}))

    def value(self, name: str, value: Any) -> Any:
        """What a trial uses of a value that a search has drawn for this setting."""
        dimension = self.space[name]
        return dimension.value(value) if isinstance(dimension, Range) else value

    def check(self) -> "SweepConfig":
        """Itself, if each value of each setting is accepted beside the first values of all others.

        Raises `ConfigError`, near names included. A combination that is refused though each of its values is accepted
        can only be found by trying it: that trial fails, the others go on.
        """
        for config in self.corners():
            if config.matchers > 1:
                raise ConfigError(
                    f"{config.matchers} matchers asked for, but a trial matches alone; take them out of the settings"
                )
        return self

    def corners(self) -> Iterator[DistillConfig]:
        """Each value of each setting, of a range its ends, beside the first values of all others."""
        first = {name: _corners(dimension)[0] for name, dimension in self.space.items()}
        yield self.config(first)
        for name, dimension in self.space.items():
            for value in _corners(dimension)[1:]:
                yield self.config({**first, name: value})

    def experts_wanted(self) -> list[DistillConfig]:
        """One config for every combination of the values that decide which experts are matched."""
        first = {name: _corners(dimension)[0] for name, dimension in self.space.items()}
        listed = {
            name: dimension
            for name, dimension in self.space.items()
            if isinstance(dimension, tuple) and _below(name, EXPERT_SETTINGS)
        }
        combinations = itertools.product(*listed.values())
        return [self.config({**first, **dict(zip(listed, values, strict=True))}) for values in combinations]

    def number_of_trials(self) -> int:
        """How many trials there will be."""
        if self.searcher != "grid":
            return self.trials
        return self.trials * math.prod(len(d) for d in self.space.values() if isinstance(d, tuple))


def read_sweep(path: Path) -> SweepConfig:
    """A sweep from a TOML or JSON file. Raises `ConfigError` in one line."""
    return SweepConfig.of(read_table(path)).check()


def nested(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`{"schedule.kind": "count"}` as `{"schedule": {"kind": "count"}}`."""
    table: dict[str, Any] = {}
    for name, value in chosen.items():
        entry: Any = value
        for key in reversed(name.split(".")):
            entry = {key: entry}
        table = merge(table, entry)
    return table


def _below(name: str, groups: tuple[str, ...]) -> bool:
    """Whether a setting is one of these, or within one of these tables."""
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _corners(dimension: Dimension) -> list[Any]:
    if isinstance(dimension, Range):
        return [dimension.value(dimension.low), dimension.value(dimension.high)]
    return list(dimension)


def _flatten(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables (what a bare `schedule.kind` is in TOML) as dotted names; a table of bounds is a range."""
    for key, value in table.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, Mapping):
            try:
                yield name, Range.of(value)
            except ConfigError as error:
                raise ValueError(f"{name}: {error}") from None
        elif isinstance(value, list | tuple):
            yield name, tuple(value)
        else:
            raise ValueError(f"{name} is {value!r}; give a list of values or {{ low = …, high = … }}")
