"""The folder of a run: belongs to one run, is never left half written, loads no pickled objects."""

import os
import pickle
import resource

import pytest
import torch

from ptm_ray.errors import StoreError
from ptm_ray.store import atomic
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place


class Payload:
    """What an attacker would pickle."""

    def __reduce__(self):
        return (os.mkdir, ("pickled-code-ran",))


def test_the_same_run_may_claim_its_folder_again_and_another_may_not(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim({"config": {"ipc": 1, "images": {"lr": 0.1}}, "dataset": "a"})
    folder.claim({"config": {"ipc": 1, "images": {"lr": 0.1}}, "dataset": "a"})
    with pytest.raises(StoreError, match=r"another run \(config\.images\.lr is 0\.1 there, 0\.2 here\)"):
        folder.claim({"config": {"ipc": 1, "images": {"lr": 0.2}}, "dataset": "a"})


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(StoreError, match="not empty"):
        RunFolder(tmp_path).claim({})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_checkpoint_comes_back_with_every_tensor(tmp_path):
    state = {"images": torch.randn(3, 4), "step": 7, "nested": [{"x": torch.arange(3)}, None, "words"]}
    folder = RunFolder(tmp_path)
    assert folder.load_checkpoint() is None
    folder.save_checkpoint(state)
    read = folder.load_checkpoint()
    assert torch.equal(read["images"], state["images"])
    assert torch.equal(read["nested"][0]["x"], torch.arange(3))
    assert (read["step"], read["nested"][1:]) == (7, [None, "words"])


def test_a_checkpoint_that_the_disk_has_no_space_for_is_said_in_a_line(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"checkpoint\.pt can't be written \(File too large\)"):
            folder.save_checkpoint({"step": 2, "images": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.load_checkpoint() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_pickled_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path)
    for save in (
        lambda path: torch.save({"x": Payload()}, path),
        lambda path: path.write_bytes(pickle.dumps(Payload())),
    ):
        save(folder.checkpoint_path)
        with pytest.raises(StoreError, match="remove it to start this run over"):
            folder.load_checkpoint()
    assert not (tmp_path / "pickled-code-ran").exists()


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "notes.txt"
    atomic.write_text(path, "first")

    def fail():
        with atomic.replacing(path) as temporary:
            temporary.write_text("half of the sec")
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't be written"):
        atomic.write_text(tmp_path / "file" / "inside", "text")


def test_nothing_of_a_run_that_was_removed_at_its_url_comes_back(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("PTM_RAY_CACHE", str(tmp_path))
    folder = RunFolder(s3_url("removed-run"))
    folder.claim({"config": {"seed": 0}})
    folder.save_checkpoint({"step": 3})
    atomic.write_text(folder.result_path, '{"scores": {}}')
    atomic.write_text(folder.root / "audit" / "audit.md", "of the first run")
    folder.publish()
    # By somebody else, who has no copy.
    Place(tmp_path / "elsewhere", folder.place.url).remove()
    again = RunFolder(s3_url("removed-run"))
    again.claim({"config": {"seed": 1}})
    assert [file.name for file in again.root.rglob("*")] == ["run.json"]
    assert again.load_result() is None
    assert again.load_checkpoint() is None
    again.save_checkpoint({"step": 0})
    again.claim({"config": {"seed": 1}})
    assert again.load_checkpoint() == {"step": 0}


def test_a_folder_of_this_machine_keeps_what_it_holds(tmp_path):
    Place.of(tmp_path).forget()
    folder = RunFolder(tmp_path)
    folder.claim({})
    folder.save_checkpoint({"step": 3})
    folder.claim({})
    folder.place.forget()
    assert folder.load_checkpoint() == {"step": 3}
