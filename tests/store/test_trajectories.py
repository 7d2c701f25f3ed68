"""The trajectory store: what was written is read, and anything else is refused by its name."""

import dataclasses
import hashlib
import time

import numpy as np
import pytest

from ptm_ray.core.trajectory import Trajectory
from ptm_ray.errors import StoreError
from ptm_ray.store.places import Place
from ptm_ray.store.trajectories import TrajectoryStore

PARAMS = 50
IDENTITY = {"dataset": "abc", "network": {"width": 8}, "experts": {"lr": 0.01}}


@pytest.fixture
def store(tmp_path):
    store = TrajectoryStore(Place(tmp_path), IDENTITY, PARAMS)
    store.prepare(3, 4)
    for expert in range(3):
        store.write(trajectory(expert))
    return store


def trajectory(expert, params=PARAMS):
    draw = np.random.default_rng(expert)
    return Trajectory(expert, tuple(draw.normal(size=(4, params)).astype(np.float32)), (0.0, 0.5, 1.0, 2.0))


def test_a_trajectory_is_read_as_it_was_written(store):
    read, written = store.read(1), trajectory(1)
    np.testing.assert_array_equal(read.theta, written.theta)
    assert (read.expert, read.epochs) == (1, written.epochs)


def test_snapshots_are_views_of_the_mapped_file(store):
    vectors = store.read(0).theta
    assert not any(vector.flags.owndata or vector.flags.writeable for vector in vectors)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def lose_the_checksum(path):
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("damage", [cut_short, flip_a_byte, lose_the_checksum])
def test_a_damaged_file_is_refused_by_name_and_that_expert_alone_is_missing(store, damage):
    damage(store.path(1))
    with pytest.raises(StoreError, match=r"expert-0001\.arrow"):
        store.read(1)
    assert store.missing(3) == [1]
    store.write(trajectory(1))
    assert store.missing(3) == []


def test_a_file_is_hashed_once_as_long_as_it_stays_as_it_is(store, monkeypatch):
    digest, hashed = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    for _ in range(3):
        assert store.missing(1) == []
        store.read(0)
    assert hashed == [str(store.path(0))]
    # A file system's clock ticks every few milliseconds.
    time.sleep(0.05)
    flip_a_byte(store.path(0))
    assert store.missing(1) == [0]
    assert len(hashed) == 2


def test_other_settings_have_another_folder_and_more_experts_the_same(store):
    other = dataclasses.replace(store, identity={**IDENTITY, "experts": {"lr": 0.02}})
    assert other.folder != store.folder
    assert store.missing(5) == [3, 4]


@pytest.mark.parametrize(
    ("identity", "params", "said"),
    [({**IDENTITY, "network": {"width": 9}}, PARAMS, "another network, dataset"), (IDENTITY, 51, "here 51")],
)
def test_a_file_of_another_architecture_or_dataset_is_refused(store, tmp_path, identity, params, said):
    foreign = TrajectoryStore(Place(tmp_path), identity, params)
    foreign.folder.mkdir(exist_ok=True)
    for suffix in (".arrow", ".sha256"):
        foreign.path(0).with_suffix(suffix).write_bytes(store.path(0).with_suffix(suffix).read_bytes())
    with pytest.raises(StoreError, match=said):
        foreign.read(0)


def test_a_store_on_a_full_disk_says_how_much_is_missing(tmp_path):
    store = TrajectoryStore(Place(tmp_path), IDENTITY, 10**15)
    with pytest.raises(StoreError, match=r"no disk space left .* MiB needed"):
        store.prepare(10, 10)


def test_a_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    store = TrajectoryStore(Place(tmp_path / "file"), IDENTITY, PARAMS)
    with pytest.raises(StoreError, match="can't be written"):
        store.prepare(1, 1)
