"""Downloaded folders become parts that no patient is in twice."""

import pytest

from benchmarks.prepare import arrange, split_of
from ptm_ray.data import load_dataset
from tests.files import encoded, picture


def write_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels))


def test_parts_are_of_the_sizes_that_they_should_be_and_the_same_everywhere():
    parts = [split_of(f"14-{number}AB") for number in range(3000)]
    shares = [parts.count(part) / 3000 for part in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    known = {"14-22549AB": "train", "14-9461": "val", "14-21998AB": "test", "Normal-7.png": "train"}
    assert {unit: split_of(unit) for unit in known} == known


def test_no_patient_of_breakhis_is_in_two_parts_and_other_magnifications_are_left_out(tmp_path):
    for patient in range(40):
        for kind, folder in (("B_A", "benign"), ("M_DC", "malignant")):
            for magnification in (40, 100):
                where = tmp_path / "BreaKHis_v1" / folder / f"{magnification}X"
                name = f"SOB_{kind}-14-{patient}{kind[0]}-{magnification}-001.png"
                write_picture(where / name, picture(seed=patient))
                write_picture(where / name.replace("-001", "-002"), picture(seed=100 + patient))
    counts = arrange("breakhis", tmp_path / "BreaKHis_v1", tmp_path / "root")
    assert sum(counts.values()) == 160
    parts = {}
    for link in (tmp_path / "root" / "breakhis").rglob("*.png"):
        assert "-40-" in link.name
        part, label = link.relative_to(tmp_path / "root" / "breakhis").parts[:2]
        assert label == ("benign" if "SOB_B" in link.name else "malignant")
        parts.setdefault(link.name.rsplit("-40-")[0], set()).add(part)
    assert {len(found) for found in parts.values()} == {1}
    dataset = load_dataset("breakhis", size=32, data_root=tmp_path / "root")
    assert dataset.class_names == ("benign", "malignant")
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 160


def test_masks_of_the_chest_x_rays_are_left_out(tmp_path):
    for label in ("COVID", "Viral Pneumonia"):
        for number in range(30):
            for kind in ("images", "masks"):
                write_picture(tmp_path / "in" / label / kind / f"{label}-{number}.png", picture(colour=False))
    counts = arrange("covid19_cxr", tmp_path / "in", tmp_path / "root")
    assert sum(counts.values()) == 60
    assert {label for _, label in counts} == {"covid", "viral_pneumonia"}
