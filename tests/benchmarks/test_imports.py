"""Benchmarks run for minutes and rarely: what they take of the package, often inside of functions, is there."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from benchmarks.scaling import Stand
from ptm_ray.orchestrate.workers import Worker

FILES = sorted(Path(inspect.getfile(Stand)).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_imported_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("ptm_ray", "benchmarks"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


def test_the_worker_that_only_hands_over_is_called_as_a_real_one():
    def asks(method):
        # Ray adds one of its own to the methods of a class that it has started.
        return [name for name in inspect.signature(method).parameters if not name.startswith("_ray")]

    for name, method in inspect.getmembers(Stand, inspect.isfunction):
        assert name == "__init__" or asks(method) == asks(getattr(Worker, name))
