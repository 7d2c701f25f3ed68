"""Shapes in signatures are checked while the tests run; real images are found where they are kept."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("ptm_ray.core", "beartype.beartype").__enter__()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real medical images, npz files in MedMNIST's layout."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PTM_RAY_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set PTM_RAY_TEST_DATA to the folder that holds bccd_32.npz")
    return folder
