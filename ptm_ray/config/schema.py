"""JSON Schemas of settings, sweep and suite files, for editors that complete and check TOML as it is written.

    python -m ptm_ray.config.schema FOLDER

writes `settings.json`, `sweep.json` and `suite.json`. They know names, kinds and bounds; what settings say
of each other, only reading them finds.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptm_ray.config.models import DistillConfig
from ptm_ray.config.suite import FULL, SuiteConfig
from ptm_ray.config.sweep import SHARED, SweepConfig

Schema = dict[str, Any]
#: A setting below a table, named in one key: "schedule.kind".
DOTTED = r"^[a-z_]+(\.[a-z_]+)+$"


def settings_schema() -> Schema:
    """Of a settings file."""
    schema: Schema = _plain(DistillConfig.model_json_schema())
    return schema


def sweep_schema() -> Schema:
    """Of a sweep file: settings as above, and a space of lists and ranges of the same names."""
    settings, sweep = settings_schema(), _plain(SweepConfig.model_json_schema())
    definitions = {**settings.pop("$defs"), **sweep.pop("$defs")}
    values = {"anyOf": [{"type": "array"}, {"$ref": "#/$defs/Range"}]}
    sweep["properties"]["settings"] = settings
    space = _space(settings, definitions)
    for name in SHARED:
        del space["properties"][name]
    sweep["properties"]["space"] = {**space, "patternProperties": {DOTTED: values}}
    return {**sweep, "$defs": definitions}


def suite_schema() -> Schema:
    """Of a suite of a benchmark: its settings and those of each variant as above; methods as a list or a table."""
    settings, suite = settings_schema(), _plain(SuiteConfig.model_json_schema())
    definitions = settings.pop("$defs")
    known, variants = settings["properties"]["method"]["enum"], suite["properties"]["methods"]
    names = {"type": "array", "minItems": 1, "items": {"enum": [*known, FULL]}}
    tables = {"type": "object", "minProperties": 1, "additionalProperties": settings}
    suite["properties"]["methods"] = {**_described(variants), "anyOf": [names, tables]}
    suite["properties"]["settings"] = settings
    return {**suite, "$defs": definitions}


def _space(table: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A table of settings as a table of what to try of each."""
    tried = {}
    for name, setting in table["properties"].items():
        below = definitions.get(setting.get("$ref", "").rpartition("/")[2], setting)
        if "properties" in below:
            tried[name] = _space(below, definitions)
        else:
            values = {"type": "array", "minItems": 1, "items": {k: v for k, v in setting.items() if k != "description"}}
            tried[name] = {**_described(setting), "anyOf": [values, {"$ref": "#/$defs/Range"}]}
    return {"type": "object", "properties": tried, "additionalProperties": False}


def _described(setting: Schema) -> Schema:
    return {"description": setting["description"]} if "description" in setting else {}


def _plain(part: Any) -> Any:
    """Without what says nothing to an editor: titles made of the names, defaults of whole tables, nulls of TOML."""
    if isinstance(part, list):
        return [_plain(one) for one in part if one != {"type": "null"}]
    if not isinstance(part, dict):
        return part
    kept = {k: _plain(v) for k, v in part.items() if not (k == "title" and isinstance(v, str))}
    if "$ref" in kept or kept.get("default", 0) is None:
        kept.pop("default", None)
    if isinstance(choice := kept.get("anyOf"), list) and len(choice) == 1:
        kept = {**{k: v for k, v in kept.items() if k != "anyOf"}, **choice[0]}
    return kept


def main(folder: Path) -> None:
    """Writes all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in (("settings", settings_schema()), ("sweep", sweep_schema()), ("suite", suite_schema())):
        (folder / f"{name}.json").write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
