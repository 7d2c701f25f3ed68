"""The main job on real medical images, where they are at hand."""

import numpy as np
import pytest

import ptm_ray as ptm

SMALL = {
    "network": {"width": 8},
    "experts": {"count": 2, "steps": 60, "snapshots": 10},
    "evaluation": {"seeds": 2, "random_draws": 1, "steps": 40, "full_steps": 60, "validation_networks": 1},
    "outer_steps": 12,
}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("name", "channels"), [("pneumoniamnist", 1), ("wbc_32", 3)])
def test_real_images_become_an_evaluated_set(real_data, tmp_path, name, channels):
    data = ptm.load_dataset(real_data / f"{name}.npz")
    result = ptm.distill(data, out=tmp_path / "run", experts_dir=tmp_path / "experts", workers=1, ipc=2, **SMALL)
    kept = ptm.SyntheticSet.load(result.set)
    assert kept.images.shape == (2 * data.num_classes, channels, data.resolution, data.resolution)
    assert np.bincount(kept.labels).tolist() == [2] * data.num_classes
    # Sixty steps on all images teach a small network something; that much is sure on these datasets.
    full = result.scores["full"]["balanced_accuracy"]["mean"]
    assert full > 1 / data.num_classes + 0.1
    assert ("flip" in kept.recipe["augmentation"]) == (name != "pneumoniamnist")
