"""Settings from files: TOML, JSON, and what a run has written down of its own."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ptm_ray.config.base import merge
from ptm_ray.config.models import DistillConfig
from ptm_ray.config.presets import METHODS
from ptm_ray.errors import ConfigError, did_you_mean, first_line, readable


def read_table(path: Path) -> dict[str, Any]:
    """A TOML or JSON file as a dict. Raises `ConfigError` where there is none or it doesn't parse."""
    return _parsed(path, json.loads if path.suffix == ".json" else tomllib.loads)


def read_environment(path: Path) -> dict[str, Any]:
    """Ray's runtime environment from a file: YAML, as Ray's own tools take it, TOML or JSON. Raises `ConfigError`."""
    if path.suffix not in (".yaml", ".yml"):
        return read_table(path)
    # Not for settings, where YAML would take 1e-3 for a word.
    import yaml

    def parse(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error

    return _parsed(path, parse)


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    with readable(path, ConfigError):
        if not path.is_file():
            raise ConfigError(f"no settings file {path}; check its name, or leave it out for the defaults")
        held = path.read_bytes()
    try:
        table: dict[str, Any] = parse(held.decode())
    except ValueError as error:
        raise ConfigError(f"{path} does not parse ({first_line(error)}); mend it there") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path} holds a {type(table).__name__}, no settings; write them as a table of names")
    return table


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a TOML or JSON file, or those that a run has written down: in its `run.json`, or in its set's
    `recipe.json`, where a dataset without a name of its own has lost its path. Raises `ConfigError`.
    """
    table = read_table(path)
    # Beside what else there is to say of a run; no setting bears that name.
    of_run = table.get("config")
    return of_run if isinstance(of_run, dict) else table


def resolve(*tables: Mapping[str, Any]) -> DistillConfig:
    """Defaults, then the method's preset, then these tables, later ones winning. Raises `ConfigError`.

    A table that names another method than the tables before it takes what is still as the former method's preset has it
    back to the defaults, and brings its own preset along: a saved run says everything, and what it says of segments
    must not survive under another method's name.
    """
    asked: dict[str, Any] = {}
    for table in tables:
        method, before = table.get("method"), asked.get("method")
        if before is not None and method not in (None, before):
            asked = merge(_without(asked, _preset(before)), _preset(method))
        asked = merge(asked, table)
    return DistillConfig.of(merge(_preset(asked.get("method", "ptm")), asked))


def _without(table: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The table less what it says as the preset does."""
    left: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and isinstance(own := preset.get(key), Mapping):
            left[key] = _without(value, own)
        elif key not in preset or value != preset[key]:
            left[key] = value
    return left


def _preset(method: object) -> Mapping[str, Any]:
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; {did_you_mean(str(method), METHODS)}")
    return METHODS[str(method)]
