"""Every bad dataset or setting is refused in one line, with the value and the way out, before Ray starts."""

import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ptm_ray import api
from ptm_ray.cli import submit
from ptm_ray.config.files import read_table
from ptm_ray.data.load import load_dataset
from ptm_ray.errors import ConfigError, DataError, NotEnoughImages, PtmError, StoreError
from ptm_ray.store.cells import CellTable
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place
from ptm_ray.store.trajectories import TrajectoryStore
from tests.files import encoded, picture, write_classes, write_npz, write_parquet

PLENTY = np.arange(12) % 3
WITH_NAN = np.where(np.arange(12 * 256).reshape(12, 16, 16) == 7, np.nan, 0.5)
FAINT = np.linspace(0, 9.9, 12 * 256).reshape(12, 16, 16)


def npz(**changes):
    return lambda folder: write_npz(folder / "scans.npz", **changes)


def good(folder):
    return write_npz(folder / "scans.npz")


def text(name):
    def write(folder):
        (folder / name).write_text("no images")
        return folder / name

    return write


def below_a_file(folder):
    return text("file")(folder) / "scans.npz"


def named(name):
    return lambda _: name


def classes(**counts):
    return lambda folder: write_classes(folder / "cells", counts)


def table(**columns):
    return lambda folder: write_parquet(folder / "scans.parquet", **columns)


def alike(n):
    return [encoded(picture(8))] * n


DATASETS = [
    ("no such file", lambda folder: folder / "none.npz", DataError, ["no file or folder", "none.npz", "give an npz"]),
    ("no such folder", lambda folder: folder / "none", DataError, ["no file or folder", "give an npz", "a name"]),
    ("too long a name", named("x" * 300), DataError, ["xxx… can't be read (File name too long)", "check its name"]),
    ("below a file", below_a_file, DataError, ["no file or folder", "file/scans.npz"]),
    ("text as npz", text("scans.npz"), DataError, ["scans.npz is not an npz file", "numpy.savez"]),
    ("another ending", text("scans.csv"), DataError, ["ends in .csv", ".npz", ".parquet"]),
    ("labels missing", npz(without=("train_labels",)), DataError, ["lacks train_labels", "it holds", "Expected"]),
    ("test labels missing", npz(without=("test_labels",)), DataError, ["lacks test_labels"]),
    ("lengths differ", npz(train_labels=PLENTY[:5]), DataError, ["12 images but 5 labels", "exactly one"]),
    ("no images", npz(val_images=np.zeros((0, 16, 16)), val_labels=PLENTY[:0]), DataError, ["val: no images"]),
    ("label too high", npz(class_names=["a", "b"]), DataError, ["from 0 to 2", "2 classes", "name every class"]),
    ("label below 0", npz(train_labels=PLENTY - 1), DataError, ["from -1 to 1", "mend the labels"]),
    ("label of millions", npz(test_labels=PLENTY * 10**9), DataError, ["label 2000000000 among", "0, 1, 2"]),
    ("labels not whole", npz(train_labels=PLENTY / 2), DataError, ["label 0.5 is not a whole", "0, 1, 2"]),
    ("labels as names", npz(train_labels=np.array(["a"] * 12)), DataError, ["of type <U1", "whole numbers"]),
    ("several labels", npz(train_labels=np.zeros((12, 4))), DataError, ["(12, 4)", "multi-label", "one class per"]),
    ("empty class", npz(train_labels=PLENTY // 2 * 2), DataError, ["class '1' has no training image", "drop"]),
    ("one class", npz(**{f"{p}_labels": PLENTY * 0 for p in ("train", "val", "test")}), DataError, ["one class ('0')"]),
    ("one image", classes(a=1, b=5), DataError, ["class 'a' has one image left", "add images"]),
    ("label of no row", npz(train_labels=np.array(1)), DataError, ["shape ()", "one class per image"]),
    ("class named twice", npz(class_names=["a", "b", "a"]), DataError, ["two classes are called 'a'", "of its own"]),
    ("masks", npz(train_images=np.ones((12, 16, 16), bool)), DataError, ["no higher than 1", "scale them to 0–255"]),
    ("few levels", npz(train_images=FAINT), DataError, ["from 0 to 9.9", "fewer than 32 grey levels", "0–1 (float)"]),
    ("not UTF-8", classes(**{"a": 3, "b\udcff": 3}), DataError, ["'b\\udcff' is no UTF-8", "rename"]),
    ("NaN", npz(train_images=WITH_NAN), DataError, ["1 pixel values are NaN", "mend or drop"]),
    ("pixels below 0", npz(train_images=np.full((12, 16, 16), -3.0)), DataError, ["from -3 to -3", "0–255"]),
    ("pixels beyond 1", npz(train_images=np.full((12, 16, 16), 1.01)), DataError, ["from 1.01 to 1.01", "0–1 (float)"]),
    ("not square", npz(train_images=np.zeros((12, 16, 8), np.uint8)), DataError, ["16×8", "crop or resize"]),
    ("sizes differ", npz(val_images=np.zeros((12, 8, 8), np.uint8)), DataError, ["(8, 8, 1)", "one size"]),
    ("empty folder", lambda folder: folder, DataError, ["holds no class folders", "one folder of images per class"]),
    ("empty class folder", classes(a=3, b=0), DataError, ["class 'b' has no image", "expected PNG"]),
    ("table without labels", table(image=alike(4)), DataError, ["lacks the column label", "it has image"]),
    ("table of one class", table(image=alike(9), label=["sick"] * 9), DataError, ["only one class ('sick')"]),
    ("unknown dataset", named("bloodmist"), DataError, ["unknown dataset 'bloodmist'", "did you mean 'bloodmnist'"]),
    ("3D dataset", named("organmnist3d"), DataError, ["unknown dataset 'organmnist3d'", "did you mean 'organ"]),
    ("chestmnist", named("chestmnist"), DataError, ["chestmnist has several labels", "not yet supported"]),
]

# Settings that images refuse, and three that need none: these must be refused before Ray starts too. What else settings
# are refused for by themselves is in tests/config/test_config.py.
SETTINGS = [
    ("ipc 0", {"ipc": 0}, ConfigError, ["ipc must be 1 or more", "0"]),
    ("unknown setting", {"outer_step": 5}, ConfigError, ["unknown setting 'outer_step'", "did you mean 'outer_steps'"]),
    (
        "end beyond the trajectory",
        {"schedule": {"end_max": 30}},
        ConfigError,
        ["schedule.end_max is snapshot 30", "end at snapshot 20", "raise experts.snapshots"],
    ),
    (
        "ipc above a class's count",
        {"ipc": 10},
        NotEnoughImages,
        ["class '0' has 4 training images, ipc is 10", "noise", "real-resampled"],
    ),
    (
        "a coreset above a class's count",
        {"ipc": 10, "images": {"init": "k-means"}},
        NotEnoughImages,
        ["class '0' has 4 training images, ipc is 10"],
    ),
    (
        "more than all images",
        {"ipc": 5, "images": {"init": "real-natural"}, "outer_steps": 0},
        NotEnoughImages,
        ["12 training images", "ipc × classes is 15", "lower --ipc"],
    ),
    ("network too deep", {"network": {"depth": 5}}, ConfigError, ["16 pixels", "depth 5", "use depth 4 or less"]),
    (
        "unknown evaluation network",
        {"ipc": 1, "evaluation": {"networks": ("resnet",)}},
        ConfigError,
        ["unknown network 'resnet'", "did you mean 'resnet18'"],
    ),
    ("size not there", {"ipc": 1, "size": 64}, DataError, ["16 pixels", "not 64", "leave size out"]),
]


#: What is tried beside the first values of all others, of a range its ends.
SPACES = [
    ("a value", {"ipc": [1, 10]}, NotEnoughImages, ["class '0' has 4 training images, ipc is 10"]),
    ("an end", {"ipc": {"low": 1, "high": 9, "integer": True}}, NotEnoughImages, ["class '0' has 4", "ipc is 9"]),
    ("the first one", {"images.init": ["real-natural", "real"], "ipc": [5]}, NotEnoughImages, ["12 training images"]),
    ("a network's", {"seed": [0, 1], "network.depth": [2, 5]}, ConfigError, ["16 pixels", "depth 5"]),
]


def refused(folder, data, kind, words, **settings):
    """Distils what can't be distilled; the message, once it is known to be as it should."""
    from ptm_ray.api import distill

    settings.setdefault("out", folder / "out")
    refused_by(distill, data, folder, kind, words, **settings)


def refused_by(make, asked, folder, kind, words, **settings):
    import ray

    other_tests_ray = ray.is_initialized()
    with pytest.raises(PtmError) as caught:
        make(asked, experts_dir=folder / "experts", **settings)
    assert ray.is_initialized() == other_tests_ray
    assert not (folder / "experts").exists()
    check_message(caught, kind, words)


def check_message(caught, kind, words):
    message = str(caught.value)
    assert caught.type is kind
    assert "\n" not in message
    assert len(message) <= 300
    assert [word for word in words if word not in message] == [], message


def table_of(rows):
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


@pytest.mark.parametrize(("make", "kind", "words"), table_of(DATASETS))
def test_a_bad_dataset_is_refused(tmp_path, make, kind, words):
    refused(tmp_path, make(tmp_path), kind, words, ipc=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("settings", "kind", "words"), table_of(SETTINGS))
def test_a_bad_setting_is_refused(tmp_path, settings, kind, words):
    refused(tmp_path, good(tmp_path), kind, words, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("space", "kind", "words"), table_of(SPACES))
def test_a_sweep_of_what_the_images_do_not_allow_is_refused(tmp_path, space, kind, words):
    from ptm_ray.api import sweep

    asked = {"settings": {"ipc": 1, "outer_steps": 0}, "space": space}
    refused_by(sweep, asked, tmp_path, kind, words, data=good(tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_too_small_for_a_network_are_refused(tmp_path):
    small = write_npz(tmp_path / "small.npz", **{f"{p}_images": np.zeros((12, 8, 8)) for p in ("train", "val", "test")})
    refused(tmp_path, small, ConfigError, ["8 pixels", "depth 5", "use depth 3"], ipc=1, network={"depth": 5})
    networks = {"evaluation": {"networks": ("vgg11",)}}
    refused(tmp_path, small, ConfigError, ["8 pixels", "vgg11", "needs 16 or more"], ipc=1, **networks)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_of_another_run_is_refused(tmp_path):
    RunFolder(tmp_path / "out").claim({"config": {"ipc": 3}, "dataset": "of that run"})
    before = (tmp_path / "out" / "run.json").read_text()
    words = ["out holds another run", "config.ipc is 3 there, 1 here", "choose another --out"]
    refused(tmp_path, good(tmp_path), StoreError, words, ipc=1)
    assert (tmp_path / "out" / "run.json").read_text() == before


def test_an_output_folder_whose_run_is_damaged_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"config": ')
    refused(tmp_path, good(tmp_path), StoreError, ["run.json is damaged", "choose another --out"], ipc=1)
    assert (tmp_path / "out" / "run.json").read_text() == '{"config": '


def test_an_output_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    refused(tmp_path, good(tmp_path), StoreError, ["out is not empty", "choose another --out"], ipc=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_output_folder_that_can_not_be_made_is_refused(tmp_path):
    out = text("file")(tmp_path) / "out"
    refused(tmp_path, good(tmp_path), StoreError, ["file/out can't be written", "another folder"], ipc=1, out=out)
    assert (tmp_path / "file").read_text() == "no images"


@pytest.fixture
def as_nobody():
    """Makes a folder that all may look into, and this process one that may not look everywhere, as root may."""
    with tempfile.TemporaryDirectory() as name:
        folder, me = Path(name), os.geteuid()
        folder.chmod(0o755)

        def become():
            if me == 0:
                os.seteuid(65534)

        try:
            yield folder, become
        finally:
            os.seteuid(me)
            for path in folder.rglob("*"):
                path.chmod(stat.S_IRWXU)


LOOKS = {
    "an npz": (lambda path: load_dataset(path / "scans.npz"), DataError),
    "a folder of images": (load_dataset, DataError),
    "a settings file": (lambda path: read_table(path / "run.toml"), ConfigError),
    "a working directory": (lambda path: submit.main(["--working-dir", f"{path}/x", "--", "doctor"]), ConfigError),
    "a folder for results": (lambda path: Place.of(path).is_empty(), StoreError),
    "a run to go on with": (lambda path: RunFolder(path).claim({}), StoreError),
    "a run to audit": (lambda path: api.audit(path), StoreError),
    "a sweep to go on with": (api.held_sweep, StoreError),
    "a table of a benchmark": (lambda path: CellTable(Place.of(path)), StoreError),
    "experts": (lambda path: TrajectoryStore(Place.of(path), {}, 3).missing(1), StoreError),
    "a set to evaluate": (lambda path: api.evaluate(path), StoreError),
    "a set to export": (lambda path: api.export(path, path.parent / "out"), StoreError),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_path_without_rights_or_of_too_long_a_name_is_refused(as_nobody, look):
    folder, become = as_nobody
    (folder / "locked").mkdir(mode=0)
    asked, kind = LOOKS[look]
    become()
    reasons = {folder / "locked": "Permission denied", folder / ("x" * 300): "File name too long"}
    for path, reason in reasons.items():
        with pytest.raises(PtmError) as caught:
            asked(path)
        check_message(caught, kind, [f"can't be read ({reason}); check its name and your rights"])


def test_pictures_that_may_not_be_read_are_not_left_out(as_nobody):
    folder, become = as_nobody
    write_classes(folder / "cells", {"a": 4, "b": 4})
    (folder / "cells" / "b" / "more").mkdir(mode=0)
    become()
    with pytest.raises(DataError, match=r"b/more can't be read \(Permission denied\)"):
        load_dataset(folder / "cells")


def test_a_full_disk_is_noticed_before_the_work_begins(tmp_path, monkeypatch):
    data = good(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**40, used=2**40 - 2**20, free=2**20))
    refused(tmp_path, data, StoreError, ["no disk space left", "64 MiB needed, 1 MiB free", "free some"], ipc=1)
    assert not list(tmp_path.rglob("run.json"))
