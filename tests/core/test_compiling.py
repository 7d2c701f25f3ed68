"""Where compiled loops are kept."""

import importlib.util
import sys

import numba
import numpy as np
import pytest

SOURCE = """
from ptm_ray.core.nets.compiling import compiled

@compiled
def doubled(x):
    return {factor} * x
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A compiled function of a module that lies in a folder."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    # Sources of one size, written within a second, are one to Python, which would run the first's bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(folder, factor=2):
        file = tmp_path / folder / "small.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(SOURCE.format(factor=factor))
        spec = importlib.util.spec_from_file_location("small", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.doubled(np.ones(3))[0] == factor
        return module.doubled.stats

    return load


def test_sources_that_travelled_find_what_was_compiled_of_them_elsewhere(load):
    assert not load("here").cache_hits
    assert load("there").cache_hits


def test_other_sources_in_the_same_place_are_compiled_anew(load):
    load("here")
    assert not load("here", factor=3).cache_hits
    # The first are found again.
    assert load("here").cache_hits


def test_a_place_that_its_user_named_is_kept_to(load, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "InTreeCacheLocator")
    load("here")
    assert list((tmp_path / "here" / "__pycache__").glob("small.doubled-*.nbi"))
    assert not (tmp_path / "cache").exists()
