"""An audit on a real cluster: of a run that hands out training images, and so gives away which they were."""

import json
from dataclasses import replace

import numpy as np
import pytest

import ptm_ray as ptm
from ptm_ray.data.dataset import Split
from ptm_ray.errors import ConfigError, DataError, StoreError
from ptm_ray.orchestrate import audit
from ptm_ray.report.audit import report
from tests.small import SETTINGS, small_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")
#: As they are, and so many that most training images are handed on.
HANDED_OUT = {
    **SETTINGS,
    "ipc": 30,
    "images": {"init": "real"},
    "outer_steps": 0,
    "evaluation": {**SETTINGS["evaluation"], "seeds": 1, "compare_with": []},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The folder of a run, and its audit."""
    root = tmp_path_factory.mktemp("audit")
    ptm.distill(small_dataset(), out=root / "run", experts_dir=root / "experts", workers=1, **HANDED_OUT)
    before = ptm.SyntheticSet.load(root / "run" / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "NETWORKS", {"synthetic": 2, "full": 1})
        return root, before, ptm.audit(root / "run", small_dataset(), experts_dir=root / "experts", workers=1)


def attack(findings, on, by, canaries):
    (one,) = (one for one in findings["attacks"] if (one["on"], one["by"], one["of"]) == (on, by, canaries))
    return one


def test_images_that_are_handed_on_are_named_by_the_nearest_one(audited):
    _, _, result = audited
    for canaries in ("mislabelled", "ordinary"):
        found = attack(result.findings, "set", "nearest image", canaries)
        # Five of six that were in are in the set as well, and nobody else is.
        assert found["auc"] > 0.75
        assert found["found"] > 0.5
    assert result.findings["copies"] == {"images": 90, "copies": 90, "test_images_in_train": 0}


def test_every_attack_is_there_with_all_of_its_figures(audited):
    _, _, result = audited
    findings = result.findings
    assert findings["canaries"] == 30
    assert 0 < findings["members"] < 30
    assert len(findings["attacks"]) == 6
    for one in findings["attacks"]:
        assert one["epsilon"] >= 0
        assert 0 <= one["auc_low"] <= one["auc"] <= one["auc_high"] <= 1


def test_report_and_card_say_what_was_found_and_the_set_is_as_it_was(audited):
    root, before, result = audited
    assert json.loads((root / "run" / "audit.json").read_text()) == result.findings
    report, card = result.report.read_text(), (root / "run" / "set" / "card.md").read_text()
    for one in result.findings["attacks"]:
        counted = f"{one['of']}, {one['members']} of {one['canaries']} in"
        assert f"| {one['by']} | {counted} | {100 * one['auc']:.1f} %" in report
        assert f"| {one['by']} | {counted} | {100 * one['auc']:.1f} %" in card
    assert "90 of the set's 90 images lie nearer to a training image" in report
    assert "a coin had been\nthrown for each of 30 training images" in card
    page = (root / "run" / "report.html").read_text()
    assert "has not been audited" not in card
    assert "has not been audited" not in page
    assert "thrown for each of 30 training images" in page
    after = ptm.SyntheticSet.load(root / "run" / "set")
    assert after.recipe.pop("audit") == result.findings
    assert after.recipe == before.recipe
    assert np.array_equal(after.images, before.images)
    shared = (root / "run" / "set").rglob("*")
    assert {path.name for path in shared} == {
        "synthetic.parquet",
        "synthetic.npz",
        "recipe.json",
        "card.md",
        "grid.png",
    }


def test_test_images_that_stand_in_train_are_said(audited):
    _, made, result = audited
    data = small_dataset()
    rows = np.arange(7)
    known = replace(data, test=Split(data.train.images[rows], data.train.labels[rows]))
    copied = audit._copies(made, known)
    assert copied == {"images": 90, "copies": 90, "test_images_in_train": 7}
    assert "test images" not in report(made, result.findings).split("test images do, or are")[1]
    said = report(made, {**result.findings, "copies": copied})
    assert "Of the test images 7 stand in the training split too" in said


def test_another_audit_is_refused_the_folder_of_the_first(audited):
    root, _, _ = audited
    with pytest.raises(StoreError, match="an audit with other canaries"):
        ptm.audit(root / "run", small_dataset(), canaries=20, experts_dir=root / "experts")


def test_what_can_not_be_audited_is_refused(audited, tmp_path):
    root, _, _ = audited
    with pytest.raises(StoreError, match="holds no finished run"):
        ptm.audit(tmp_path)
    with pytest.raises(DataError, match="made from 'small', which is no dataset by name; pass --data"):
        ptm.audit(root / "run")
    with pytest.raises(DataError, match=r"cellphantom is not the dataset that .* was made from"):
        ptm.audit(root / "run", "cellphantom")
    with pytest.raises(ConfigError, match="99 canaries: small can spare 30 of 120"):
        ptm.audit(root / "run", small_dataset(), canaries=99)
