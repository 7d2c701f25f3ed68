"""Places at a URL, on a real server that speaks S3: files carried whole, found from elsewhere, no key shown."""

import contextlib
import io
import json
import shutil
import traceback

import numpy as np
import pytest
import torch
from pyarrow import fs

from ptm_ray.core.trajectory import Trajectory
from ptm_ray.errors import StoreError
from ptm_ray.store.artefact import SyntheticSet
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place
from ptm_ray.store.trajectories import TrajectoryStore

IDENTITY = {"dataset": "abc", "experts": {"lr": 0.01}}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process work with an empty cache, as another machine would."""

    def go(name):
        monkeypatch.setenv("PTM_RAY_CACHE", str(tmp_path / name))

    go("first")
    return go


@pytest.fixture
def url(s3_url, request, machine):
    return s3_url(request.node.name)


def trajectory(expert):
    draw = np.random.default_rng(expert)
    return Trajectory(expert, tuple(draw.normal(size=(3, 20)).astype(np.float32)), (0.0, 1.0, 2.0))


def test_a_path_is_a_place_that_is_its_own_copy(tmp_path):
    place = Place.of(tmp_path) / "a"
    assert (place.local, place.shown, str(place)) == (tmp_path / "a", tmp_path / "a", str(tmp_path / "a"))
    place.push("nothing")
    place.pull("nothing")
    assert place.is_empty()


def test_files_are_found_from_another_machine(url, machine):
    here = Place.of(url) / "deep" / "er"
    assert here.is_empty()
    here.local.mkdir(parents=True)
    (here.local / "a.txt").write_text("α")
    here.push("a.txt")
    machine("second")
    there = Place.of(url) / "deep" / "er"
    assert there.local != here.local
    assert not there.is_empty()
    there.pull("a.txt", "b.txt")
    assert (there.local / "a.txt").read_text() == "α"
    assert not (there.local / "b.txt").exists()
    there.remove()
    assert there.is_empty()
    # As a folder of this machine, one that isn't there is none to complain about.
    there.remove()
    here.pull("a.txt")
    assert not (here.local / "a.txt").exists()


def test_an_upload_that_is_interrupted_leaves_the_earlier_file_and_nothing_else(url, monkeypatch):
    place = Place.of(url)
    place.local.mkdir(parents=True)
    (place.local / "a.txt").write_text("first")
    place.push("a.txt")
    (place.local / "a.txt").write_text("second")

    def half(reader, writer):
        writer.write(reader.read()[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", half)
    with pytest.raises(KeyboardInterrupt):
        place.push("a.txt")
    path, bucket = place.for_ray()
    assert [info.base_name for info in bucket.get_file_info(fs.FileSelector(path))] == ["a.txt"]
    place.pull("a.txt")
    assert (place.local / "a.txt").read_text() == "first"


class Breaking(io.BytesIO):
    """A file whose connection is lost once some of it is read."""

    def read(self, size=-1):
        if self.tell():
            raise OSError("connection reset by peer")
        return super().read(3)


def test_a_download_that_breaks_off_is_said_of_the_url_and_not_of_this_machine_s_disk(url, monkeypatch):
    place = Place.of(url)
    place.local.mkdir(parents=True)
    (place.local / "a.txt").write_text("first")
    place.push("a.txt")

    class Far:
        """The bucket, by a bad line."""

        get_file_info = place.for_ray()[1].get_file_info

        def open_input_file(self, path):
            return contextlib.closing(Breaking(b"second"))

    monkeypatch.setitem(place.__dict__, "_filesystem", (Far(), place.for_ray()[0]))
    with pytest.raises(StoreError, match=r"s3://.* can't be read \(connection reset by peer\)"):
        place.pull("a.txt")
    assert (place.local / "a.txt").read_text() == "first"


def test_experts_are_trained_once_for_all_machines(url, machine):
    store = TrajectoryStore(Place.of(url), IDENTITY, 20)
    assert store.missing(2) == [0, 1]
    store.prepare(2, 3)
    store.write(trajectory(0))
    machine("second")
    other = TrajectoryStore(Place.of(url), IDENTITY, 20)
    assert other.missing(2) == [1]
    np.testing.assert_array_equal(np.stack(other.read(0).theta), np.stack(trajectory(0).theta))
    about = Place.of(url) / other.key
    about.pull("identity.json")
    assert json.loads((about.local / "identity.json").read_text())["dataset"] == "abc"


def test_a_file_that_was_damaged_on_its_way_is_refused_by_name(url, machine):
    store = TrajectoryStore(Place.of(url), IDENTITY, 20)
    store.write(trajectory(0))
    store.path(0).write_bytes(store.path(0).read_bytes()[:-10])
    store.place.push("expert-0000.arrow")
    machine("second")
    other = TrajectoryStore(Place.of(url), IDENTITY, 20)
    assert "expert-0000.arrow does not have the checksum" in other.damaged(0)
    assert other.missing(1) == [0]


def test_a_checksum_that_was_not_brought_along_is_fetched(url, machine):
    TrajectoryStore(Place.of(url), IDENTITY, 20).write(trajectory(0))
    machine("second")
    other = TrajectoryStore(Place.of(url), IDENTITY, 20)
    # As a call leaves it that was interrupted between the two.
    other.place.pull("expert-0000.arrow")
    assert other.missing(1) == []


def test_a_run_goes_on_from_another_machine(url, machine):
    folder = RunFolder(url)
    folder.claim({"config": {"ipc": 1}})
    folder.save_checkpoint({"step": 3, "images": torch.ones(2)})
    machine("second")
    other = RunFolder(url)
    other.claim({"config": {"ipc": 1}})
    held = other.load_checkpoint()
    assert held["step"] == 3
    with pytest.raises(StoreError, match=r"s3://.* holds another run \(config.ipc is 1 there, 2 here\)"):
        RunFolder(url).claim({"config": {"ipc": 2}})


def test_a_place_with_other_files_is_refused(url, machine):
    place = Place.of(url)
    place.local.mkdir(parents=True)
    (place.local / "mine.txt").write_text("x")
    place.push("mine.txt")
    machine("second")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        RunFolder(url).claim({})


def test_what_can_not_be_reached_is_one_line_without_the_key(machine):
    url = "s3://someone:s3cret@bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(StoreError) as refused:
        RunFolder(url).claim({})
    assert str(refused.value).startswith("s3://bucket/runs can't be read")
    assert "s3cret" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    unknown_scheme = url.replace("s3://", "s4://")
    with pytest.raises(StoreError, match="s4://bucket/runs can't be reached") as unknown:
        RunFolder(unknown_scheme).claim({})
    assert "s3cret" not in "".join(traceback.format_exception(unknown.value))


def test_no_bucket_is_refused_before_any_expert_trains(s3_url, machine):
    store = TrajectoryStore(Place.of(s3_url("x").replace("ptm-ray-tests", "no-such-bucket")), IDENTITY, 20)
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.* can't be written"):
        store.prepare(1, 3)


def test_a_set_that_is_not_there_is_named_by_its_url(url):
    with pytest.raises(StoreError, match=r"s3://ptm-ray-tests/.* is no synthetic set: recipe.json is missing"):
        SyntheticSet.load(url)
