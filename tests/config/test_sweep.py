"""What a sweep file may say, and how it is refused."""

from pathlib import Path

import pytest

from ptm_ray.config.files import read_table
from ptm_ray.config.sweep import Range, SweepConfig, nested, read_sweep
from ptm_ray.errors import ConfigError

READY = sorted(
    path for path in (Path(__file__).parents[2] / "tune_configs").glob("*.toml") if "space" in read_table(path)
)


def refused(asked):
    with pytest.raises(ConfigError) as caught:
        SweepConfig.of(asked).check()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_sweeps_are_accepted(path):
    asked = read_sweep(path)
    assert asked.number_of_trials() >= 4
    assert asked.experts_wanted()


def test_all_ready_sweeps_were_found():
    assert {path.stem for path in READY} == {"schedule_mmd", "rates", "ipc_curve", "pbt_weights", "smoke"}


def test_bare_and_quoted_names_of_settings_mean_the_same(tmp_path):
    (tmp_path / "bare.toml").write_text('[space]\nschedule.kind = ["count"]\noverlap.weight = {low = 1, high = 2}')
    (tmp_path / "quoted.toml").write_text(
        '[space]\n"schedule.kind" = ["count"]\n"overlap.weight" = {low = 1, high = 2}'
    )
    bare, quoted = read_sweep(tmp_path / "bare.toml"), read_sweep(tmp_path / "quoted.toml")
    assert bare == quoted
    assert bare.space == {"schedule.kind": ("count",), "overlap.weight": Range(low=1, high=2)}
    # As it is kept in a sweep's folder.
    assert SweepConfig.of(bare.model_dump(mode="json")) == bare


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"space": {"schedule.knd": ["count"]}}, ["unknown setting 'schedule.knd'", "did you mean 'kind'"]),
        ({"space": {"schedule.kind": ["cuont"]}}, ["unknown schedule.kind 'cuont'", "did you mean 'count'"]),
        ({"spaces": {}}, ["unknown setting 'spaces'", "did you mean 'space'"]),
        ({"space": {}}, ["space is empty"]),
        ({"space": {"ipc": []}}, ["ipc has no values"]),
        ({"space": {"ipc": 3}}, ["ipc is 3", "list of values or"]),
        ({"space": {"images.lr": {"low": 2, "high": 1}}}, ["images.lr", "low 2 is not below high 1"]),
        ({"space": {"images.lr": {"low": 0, "high": 1, "log": True}}}, ["images.lr", "has no logarithm"]),
        ({"space": {"ipc": {"low": 1.5, "high": 3, "integer": True}}}, ["ipc", "must be whole"]),
        ({"space": {"images.lr": {"low": 1}}}, ["images.lr", "high"]),
        ({"space": {"images.lr": {"low": 1, "high": 2, "lgo": True}}}, ["images.lr", "'lgo'", "or 'log'"]),
        ({"space": {"overlap.threshold": {"low": -1, "high": 2}}}, ["overlap.threshold", "-1"]),
        ({"searcher": "grid", "space": {"images.lr": {"low": 1, "high": 2}}}, ["a grid needs values", "images.lr"]),
        ({"space": {"experts.lr": {"low": 0.01, "high": 0.1}}}, ["experts.lr is a range", "list its values"]),
        ({"space": {"data": ["a", "b"]}}, ["data can't be swept"]),
        ({"scheduler": "pbt", "space": {"ipc": [1, 2]}}, ["pbt can't change ipc"]),
        ({"scheduler": "pbt", "searcher": "grid", "space": {"overlap.weight": [1]}}, ["pbt perturbs settings"]),
        ({"searcher": "optun", "space": {"ipc": [1]}}, ["unknown searcher 'optun'", "did you mean 'optuna'"]),
        ({"settings": {"ipc": 0}, "space": {"seed": [1]}}, ["ipc must be 1 or more, got 0"]),
        ({"cpus_per_trial": 0, "space": {"seed": [1]}}, ["cpus_per_trial", "got 0"]),
        ({"metric": "acuracy", "space": {"seed": [1]}}, ["unknown metric 'acuracy'", "did you mean 'accuracy'"]),
        ({"stop_at": 90, "space": {"seed": [1]}}, ["stop_at", "got 90"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(asked, words):
    message = refused(asked)
    for word in words:
        assert word in message


def test_every_value_of_every_setting_is_tried_before_any_trial():
    assert "steps_max 3 is below steps_min" in refused({"space": {"seed": [0, 1], "student.steps_max": [20, 3]}})


def test_a_grid_has_every_combination_and_others_the_trials_asked_for():
    space = {"schedule.kind": ["count", "progress"], "seed": [0, 1, 2]}
    assert SweepConfig.of({"searcher": "grid", "space": space}).number_of_trials() == 6
    assert SweepConfig.of({"searcher": "grid", "trials": 2, "space": space}).number_of_trials() == 12
    assert SweepConfig.of({"trials": 5, "space": space}).number_of_trials() == 5


def test_experts_are_wanted_for_every_combination_of_what_decides_them_and_no_more():
    space = {"experts.lr": [0.01, 0.02], "network.width": [8, 16], "seed": [0, 1], "images.lr": {"low": 1, "high": 2}}
    wanted = SweepConfig.of({"space": space}).experts_wanted()
    assert {(config.experts.lr, config.network.width) for config in wanted} == {
        (0.01, 8),
        (0.01, 16),
        (0.02, 8),
        (0.02, 16),
    }
    assert len(wanted) == 4


def test_experts_are_wanted_of_methods_that_have_their_own():
    wanted = SweepConfig.of({"space": {"method": ["ptm", "ftd"], "network.width": [8, 16]}}).experts_wanted()
    assert {(config.experts.flat_radius > 0, config.network.width) for config in wanted} == {
        (False, 8),
        (False, 16),
        (True, 8),
        (True, 16),
    }


def test_numbers_that_a_search_perturbs_stay_what_the_setting_takes():
    space = {"student.steps_max": {"low": 10, "high": 30, "integer": True}, "overlap.weight": {"low": 1, "high": 4}}
    asked = SweepConfig.of({"space": space})
    made = asked.config({"student.steps_max": 17.6, "overlap.weight": 9.0})
    assert (made.student.steps_max, made.overlap.weight) == (18, 4.0)


def test_a_method_in_the_space_brings_its_preset():
    asked = SweepConfig.of({"space": {"method": ["ptm", "mtt"]}})
    assert asked.config({"method": "mtt"}).schedule.kind == "random"
    assert asked.config({"method": "ptm"}).schedule.kind == "progress"


def test_dotted_names_become_tables():
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
