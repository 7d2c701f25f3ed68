"""The schemas for editors: what they accept and refuse is what reading a file does."""

import json
from pathlib import Path

import jsonschema
import pytest

from ptm_ray.config.files import read_table
from ptm_ray.config.schema import settings_schema, suite_schema, sweep_schema

FOLDER = Path(__file__).parents[2] / "tune_configs"
SCHEMAS = {"settings": settings_schema, "sweep": sweep_schema, "suite": suite_schema}


def accepts(kind, table):
    return jsonschema.Draft202012Validator(SCHEMAS[kind]()).is_valid(table)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_files_are_those_of_the_settings_there_are(kind):
    schema = SCHEMAS[kind]()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads((FOLDER / "schema" / f"{kind}.json").read_text()) == schema, (
        "settings have changed: python -m ptm_ray.config.schema tune_configs/schema"
    )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_file_names_the_schema_that_accepts_it(path):
    first = path.read_text().splitlines()[0]
    kind = "sweep" if "space" in read_table(path) else "settings"
    assert first == f"#:schema schema/{kind}.json"
    assert accepts(kind, read_table(path))


@pytest.mark.parametrize("path", sorted((FOLDER / "suites").glob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_suite_names_the_schema_that_accepts_it(path):
    assert path.read_text().splitlines()[0] == "#:schema ../schema/suite.json"
    assert accepts("suite", read_table(path))


SUITE = {"name": "few", "datasets": ["cellphantom"], "ipc": [1], "methods": ["ptm"]}


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("settings", {"ipcs": 3}),
        ("settings", {"schedule": {"kind": "progres"}}),
        ("settings", {"images": {"lr": 0}}),
        ("sweep", {"space": {"schedule": {"knd": ["count"]}}}),
        ("sweep", {"space": {"schedule": {"kind": ["cuont"]}}}),
        ("sweep", {"space": {"ipc": []}}),
        ("sweep", {"space": {"ipc": 3}}),
        ("sweep", {"space": {"images": {"lr": {"low": 1}}}}),
        ("sweep", {"space": {"data": ["a"]}}),
        ("sweep", {"settings": {"ipcs": 0}, "space": {"seed": [1]}}),
        ("sweep", {"searcher": "optun", "space": {"seed": [1]}}),
        ("sweep", {"searcher": "grid"}),
        ("suite", {**SUITE, "seed": 1}),
        ("suite", {**SUITE, "ipc": [0]}),
        ("suite", {**SUITE, "methods": ["ptm", "pmt"]}),
        ("suite", {**SUITE, "methods": {"ptm": {"images": {"lrr": 1}}}}),
        ("suite", {**SUITE, "settings": {"schedule": {"kind": "progres"}}}),
    ],
)
def test_wrong_names_kinds_and_bounds_are_refused(kind, table):
    assert not accepts(kind, table)


def test_a_suite_s_methods_are_names_or_tables():
    assert accepts("suite", SUITE)
    assert accepts("suite", {**SUITE, "methods": {"ptm": {}, "half": {"method": "ptm", "images": {"lr": 0.2}}}})


def test_dotted_names_in_quotes_are_accepted_too():
    assert accepts("sweep", {"space": {"schedule.kind": ["count"], "overlap.weight": {"low": 0.5, "high": 2}}})
