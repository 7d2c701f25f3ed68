"""Settings are closed and frozen, and mean the same from a file, from flags and from a saved run."""

import itertools
import math

import pytest
from pydantic import ValidationError

from ptm_ray.config import DistillConfig, ExpertSettings, MatchingSettings, NetworkSettings, ScheduleSettings
from ptm_ray.config.base import merge
from ptm_ray.config.files import read_settings, read_table, resolve
from ptm_ray.config.presets import METHODS
from ptm_ray.errors import ConfigError
from ptm_ray.store.checkpoints import RunFolder


def write(path, text):
    path.write_text(text)
    return path


def refused(*tables):
    with pytest.raises(ConfigError) as caught:
        resolve(*tables)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "start"),
    [
        ({"ipcs": 3}, "unknown setting 'ipcs'; did you mean 'ipc'"),
        ({"schedule": {"end": 3}}, "unknown setting 'schedule.end'; did you mean 'end_min' or 'end_max'"),
        ({"experts": {"snapshot": 3}}, "unknown setting 'experts.snapshot'; did you mean 'snapshots'"),
        ({"images": {"initial": "noise"}}, "unknown setting 'images.initial'; did you mean 'init'"),
        ({"method": "pmt"}, "unknown method 'pmt'; did you mean 'ptm'"),
        (
            {"schedule": {"kind": "progres"}},
            "unknown schedule.kind 'progres'; did you mean 'progress'? known",
        ),
        ({"experts": {"lr": 0}}, "experts.lr: Input should be greater than 0, got 0"),
        ({"ipc": 0}, "ipc must be 1 or more, got 0"),
        ({"ipc": -3}, "ipc must be 1 or more, got -3"),
        ({"ipc": 2.5}, "ipc: Input should be a valid integer, got a number with a fractional part, got 2.5"),
        ({"outer_steps": -1}, "outer_steps: Input should be greater than or equal to 0, got -1"),
        (
            {"matching": {"easy_growth": 0.5}},
            "matching.easy_growth: Input should be greater than or equal to 1, got 0.5",
        ),
        ({"network": {"norm": "layer"}}, "unknown network.norm 'layer'; known: group, instance, none"),
        ({"schedule": {"end_min": 5, "end_max": 3}}, "schedule: end_max 3 lies before end_min 5"),
        ({"schedule": {"start": 4, "end_min": 4}}, "schedule: start 4 does not lie before the first end, 4"),
        ({"schedule": {"start_min": 5, "start_max": 3}}, "schedule: start_max 3 lies before start_min 5"),
        ({"student": {"steps_min": 9, "steps_max": 4}}, "student: steps_max 4 is below steps_min 9"),
        ({"images": {"optimiser": "sgd"}}, "images: optimiser sgd has no default lr"),
        ({"experts": {"steps": 5}}, "experts: 20 snapshots don't fit into 5 steps; take fewer or train longer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_value(asked, start):
    assert refused(asked).startswith(start)


def test_batch_norm_is_refused_for_matching_with_the_reason():
    message = refused({"network": {"norm": "batch"}})
    reason = "batch norm can't be matched: its running statistics are no parameters"
    for words in (reason, "use instance or group norm", "resnet18_bn"):
        assert words in message


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"experts": {"logit_adjustment": 1.0}},
            ["logit_adjustment 1 is for natural sampling", "experts.balanced to false"],
        ),
        (
            {"images": {"init": "noise", "soft_labels": True, "label_init": "experts"}},
            ["no labels for noise", "one-hot"],
        ),
        (
            {"images": {"init": "real-natural"}},
            ["real-natural", "outer_steps is 2000", "set outer_steps to 0", "images.init to real"],
        ),
        (
            {"method": "mtt", "schedule": {"length": 1}, "matching": {"shape_weight": 0.5}},
            ["matching.shape_weight", "length 1", "raise schedule.length"],
        ),
        (
            {"student": {"steps_min": 1, "steps_max": 1}, "matching": {"shape_weight": 0.5}},
            ["matching.shape_weight", "one step", "raise student.steps_max"],
        ),
        (
            {"method": "dsa", "matching": {"shape_weight": 0.5}},
            ["matching.shape_weight", "matching.what is gradients", "set both to 0"],
        ),
        (
            {"method": "dm", "images": {"soft_labels": True}},
            ["matching.what features", "can't learn labels", "images.soft_labels to false"],
        ),
        (
            {"method": "dc", "matchers": 2},
            ["2 matchers match a trajectory each", "matching.what is gradients", "set matchers to 1"],
        ),
        (
            {"subsets": {"count": 2}},
            ["2 subsets", "schedule.kind progress is set", "--method seqmatch or pdd", "subsets.count to 1"],
        ),
        ({"method": "pdd", "overlap": {"enabled": True}}, ["3 subsets", "overlap.enabled is set"]),
        ({"method": "dm", "subsets": {"count": 2}}, ["2 subsets", "matching.what features is set"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_way_out(asked, words):
    message = refused(asked)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"schedule": {"end_max": 21}}, "schedule.end_max is snapshot 21, but trajectories end at snapshot 20"),
        ({"schedule": {"end_min": 30}}, "schedule.end_min is snapshot 30"),
        ({"experts": {"snapshots": 4}, "schedule": {"end_max": 5}}, "trajectories end at snapshot 4"),
        ({"method": "mtt", "schedule": {"start_max": 19}}, "schedule.start_max + length is snapshot 21"),
        ({"method": "mtt", "schedule": {"length": 21}}, "is snapshot 21"),
        ({"schedule": {"later_share": 0.5, "start_min": 19}}, "schedule.start_min + length is snapshot 21"),
        ({"schedule": {"start": 20}}, "schedule.start + 1 is snapshot 21"),
    ],
)
def test_a_segment_beyond_the_trajectory_is_refused_with_the_way_out(asked, words):
    message = refused(asked)
    assert words in message
    assert "lower it or raise experts.snapshots" in message


def test_a_segment_that_ends_with_the_trajectory_is_accepted():
    assert resolve({"schedule": {"end_max": 20}}).schedule.end_max == 20
    assert resolve({"method": "mtt", "schedule": {"start_max": 18}}).schedule.start_max == 18


def test_a_run_ends_after_its_steps_unless_a_budget_ends_it():
    assert resolve({}).most_steps(None) == 2000
    assert resolve({}).most_steps(60.0) == math.inf
    assert [resolve({"outer_steps": 7}).most_steps(budget) for budget in (None, 60.0)] == [7, 7]


def test_from_seven_images_per_class_on_students_are_all_of_the_fewest_steps():
    assert [resolve({"ipc": ipc}).student_steps_max for ipc in (1, 2, 6, 7, 8, 50)] == [20, 16, 11, 10, 10, 10]


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        DistillConfig().ipc = 3
    with pytest.raises(ValidationError, match="frozen"):
        DistillConfig().schedule.end_min = 3


def test_replace_merges_tables_and_validates_the_whole():
    before = DistillConfig(ipc=3, schedule=ScheduleSettings(end_min=2))
    after = before.replace(schedule={"end_max": 7})
    assert (after.ipc, after.schedule.end_min, after.schedule.end_max) == (3, 2, 7)
    assert before.schedule.end_max is None
    with pytest.raises(ConfigError, match="end_max 1 lies before end_min 2"):
        before.replace(schedule={"end_max": 1})
    with pytest.raises(ConfigError, match="snapshot 7, but trajectories end at snapshot 5"):
        after.replace(experts={"snapshots": 5})


def test_merging_leaves_both_tables_alone():
    below, above = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "b": {"z": 1}}
    assert merge(below, above) == {"a": {"x": 1, "y": 5}, "b": {"z": 1}}
    assert (below, above) == ({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "b": {"z": 1}})


def test_toml_and_json_of_the_same_settings_are_the_same(tmp_path):
    toml = 'data = "bloodmnist"\nipc = 5\n[schedule]\nkind = "count"\ngrowth = 50\n[evaluation]\nnetworks = ["vit"]\n'
    json = """{"data": "bloodmnist", "ipc": 5, "schedule": {"kind": "count", "growth": 50},
              "evaluation": {"networks": ["vit"]}}"""
    from_toml = resolve(read_settings(write(tmp_path / "a.toml", toml)))
    assert from_toml == resolve(read_settings(write(tmp_path / "a.json", json)))
    assert (from_toml.ipc, from_toml.schedule.growth, from_toml.evaluation.networks) == (5, 50, ("vit",))


def test_flags_win_over_the_file_and_the_file_over_the_preset_and_the_preset_over_defaults():
    defaults, preset = resolve(), resolve({"method": "mtt"})
    file = {"method": "mtt", "schedule": {"length": 4}, "student": {"steps_max": 25}}
    both = resolve(file, {"student": {"steps_max": 30}})
    assert (defaults.schedule.kind, defaults.student.steps_max, defaults.overlap.enabled) == ("progress", None, True)
    assert (preset.schedule.kind, preset.student.steps_max, preset.overlap.enabled) == ("random", 10, False)
    assert (both.schedule.kind, both.schedule.length) == ("random", 4)
    assert (both.student.steps_min, both.student.steps_max) == (10, 30)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_run_resolves_to_itself(tmp_path, method):
    whole = resolve({"method": method, "ipc": 7, "size": 64, "evaluation": {"networks": ("vit", "vgg11")}})
    RunFolder(tmp_path).claim({"config": whole.model_dump(mode="json"), "dataset": "abc"})
    again = resolve(read_settings(tmp_path / "run.json"))
    assert again == whole
    assert again.fingerprint() == whole.fingerprint()


#: Settings that make each method what it is, beside the defaults.
MTT = {
    "schedule.kind": "random",
    "student.steps_max": 10,
    "student.inner_lr_by_segment": False,
    "overlap.enabled": False,
}
DATM = {
    "schedule.kind": "window",
    "images.init": "real-correct",
    "images.soft_labels": True,
    "images.label_init": "experts",
    "images.skip_above": 1.1,
    "images.ema": 0.0,
}
FTD = {**MTT, "experts.flat_radius": 0.01}
MADE_BY = {
    "ptm": {},
    "mtt": MTT,
    "datm": {**MTT, **DATM},
    "mct": {**MTT, "schedule.path": "straight"},
    "ftd": FTD,
    "seqmatch": {**MTT, "subsets.count": 3, "subsets.continued": "in-sequence"},
    "pdd": {**MTT, "subsets.count": 3},
    "hoptm": {**FTD, "matching.easy_base": 3e-4, "matching.shape_weight": 0.5},
    "tesla": {**MTT, "student.gradient": "tesla"},
    "dc": {"matching.what": "gradients", "matching.augment": False},
    "dsa": {"matching.what": "gradients"},
    "dm": {"matching.what": "features"},
    "ncfm": {"matching.what": "characteristics"},
    "random": {"images.init": "real", "outer_steps": 0},
    "random-natural": {"images.init": "real-natural", "outer_steps": 0},
    "herding": {"outer_steps": 0},
    "k-center": {"images.init": "k-center", "outer_steps": 0},
    "k-means": {"images.init": "k-means", "outer_steps": 0},
}


def flat(table, above=""):
    """Dotted names and their values."""
    found = {}
    for name, value in table.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_made_by_these_settings_and_no_others(method):
    usual, found = (flat(resolve(asked).model_dump()) for asked in ({}, {"method": method}))
    differ = {name: value for name, value in found.items() if value != usual[name]}
    assert differ == {**MADE_BY[method], **({} if method == "ptm" else {"method": method})}


def test_what_presets_have_in_common_with_the_defaults_are_these():
    usual = resolve({})
    assert (usual.images.init, usual.images.ema, usual.images.skip_above) == ("herding", 0.98, None)
    assert (usual.student.gradient, usual.student.steps_min, usual.experts.flat_gap) == ("exact", 10, 0.3)
    assert (usual.schedule.kind, usual.schedule.length, usual.overlap.enabled) == ("progress", 2, True)
    assert (usual.schedule.start, usual.schedule.later_share, usual.experts.zca) == (None, None, False)


def test_hoptm_is_ftd_that_matches_what_is_easy_first_and_the_shape_of_the_way():
    hoptm, ftd = (resolve({"method": method}).model_dump() for method in ("hoptm", "ftd"))
    assert (hoptm["experts"]["flat_radius"], hoptm["experts"]["flat_gap"]) == (0.01, 0.3)
    assert (hoptm["schedule"]["kind"], hoptm["overlap"]["enabled"]) == ("random", False)
    assert {name for name in hoptm if hoptm[name] != ftd[name]} == {"method", "matching"}
    own = {"easy_base": 3e-4, "easy_growth": 1.5, "easy_every": None, "shape_weight": 0.5}
    assert hoptm["matching"] == {**ftd["matching"], **own}
    assert (ftd["matching"]["easy_base"], ftd["matching"]["shape_weight"]) == (0, 0)


def test_the_threshold_of_what_is_easy_grows_by_its_factor_and_stays_a_number():
    easy = MatchingSettings(easy_base=1e-3, easy_growth=3.0, easy_every=5)
    assert [easy.easy_below(step, 0.5) for step in (0, 4, 5, 14)] == pytest.approx([1e-3, 1e-3, 3e-3, 9e-3])
    assert 1e300 < easy.easy_below(10**9, 0.5) < float("inf")
    assert MatchingSettings().easy_below(7, 0.5) is None


def test_without_a_number_of_steps_what_is_easy_grows_twenty_times_over_the_run():
    easy = MatchingSettings(easy_base=1e-3, easy_growth=2.0)
    for steps in (40, 1000):
        below = [easy.easy_below(step, step / steps) for step in range(steps)]
        assert sorted(set(below)) == pytest.approx([1e-3 * 2.0**times for times in range(20)])
        assert all(below.count(level) == steps // 20 for level in below)


def test_without_a_number_of_steps_growth_by_count_takes_its_share_of_the_run():
    for kind, share in (("count", 0.5), ("window", 0.1)):
        schedule = ScheduleSettings(kind=kind)
        assert schedule.grown(7, 0.0) == 0
        assert schedule.grown(7, share / 2) == pytest.approx(0.5)
        assert schedule.grown(7, share) == pytest.approx(1)
        assert ScheduleSettings(kind=kind, growth=20).grown(7, share) == pytest.approx(7 / 20)
    paced = {"ptm": False, "mtt": False, "datm": True, "hoptm": True, "pdd": True, "seqmatch": True, "dm": False}
    assert {method: resolve({"method": method}).paced_by_run for method in paced} == paced
    for fixed in ({"schedule": {"growth": 9}}, {"method": "datm", "schedule": {"growth": 9}}):
        assert not resolve(fixed).paced_by_run


def test_the_fingerprint_is_the_same_for_the_same_settings_and_changes_with_any_other():
    assert DistillConfig().fingerprint() == resolve({"ipc": 10, "experts": {"count": 8}}).fingerprint()
    changes = [{"seed": 1}, {"ipc": 9}, {"experts": {"lr": 0.011}}, {"network": {"depth": 3}}, {"data": "x"}]
    found = {resolve(change).fingerprint() for change in changes}
    assert len(found | {DistillConfig().fingerprint()}) == len(changes) + 1
    assert ExpertSettings(seed=1).fingerprint() != ExpertSettings().fingerprint()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "ipc = = 3", "a.toml does not parse (Invalid value (at line 1, column 7)); mend"),
        ("a.toml", "ipcs = 3", "unknown setting 'ipcs'; did you mean 'ipc'"),
        ("a.json", "{", "a.json does not parse"),
        ("a.json", "[1]", "a.json holds a list, no settings"),
        ("a.toml", None, "no settings file"),
        ("a.toml", None, "a.toml; check its name, or leave it out for the defaults"),
    ],
)
def test_a_settings_file_that_can_not_be_used_is_named(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(read_table(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_students_take_fewer_steps_through_more_images_unless_told_otherwise():
    assert [resolve({"ipc": ipc}).student_steps_max for ipc in (1, 2, 10, 50, 10_000)] == [20, 16, 10, 10, 10]
    assert resolve({"ipc": 10, "student": {"steps_min": 30}}).student_steps_max == 30
    assert resolve({"ipc": 10, "student": {"steps_max": 40}}).student_steps_max == 40


def test_a_head_start_leaves_less_to_progressive_segments():
    assert [resolve({}).later_share(start) for start in (0, 2, 4, 18)] == pytest.approx([0.7, 0.85, 1, 1])
    assert resolve({"schedule": {"later_share": 0.2}}).later_share(10) == 0.2


def test_every_setting_explains_itself():
    def undocumented(model):
        return [name for name, field in model.model_fields.items() if not field.description]

    parts = [field.annotation for name, field in DistillConfig.model_fields.items() if name not in ("data", "method")]
    parts = [part for part in parts if isinstance(part, type) and hasattr(part, "model_fields")]
    assert NetworkSettings in parts
    assert not [name for part in parts for name in undocumented(part)]
    assert all(part.__doc__ for part in [DistillConfig, *parts])


def test_a_table_that_changes_the_method_of_an_earlier_one_brings_its_preset():
    saved = resolve({"method": "ptm", "student": {"batch_size": 7}})
    changed = resolve(saved.model_dump(), {"method": "mtt"})
    assert changed.schedule.kind == "random"
    assert changed.student.batch_size == 7
    assert resolve({"student": {"steps_max": 40}}, {"method": "mtt"}).student.steps_max == 40


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(METHODS, 2)))
def test_nothing_of_a_saved_runs_method_is_left_under_another_ones_name(before, after):
    saved = resolve({"method": before, "ipc": 3}).model_dump(mode="json")
    assert resolve(saved, {"method": after}) == resolve({"method": after, "ipc": 3})


def test_what_differs_from_a_methods_preset_outlives_its_name():
    saved = resolve({"method": "datm", "images": {"skip_above": 2.0}, "schedule": {"length": 3}}).model_dump()
    changed = resolve(saved, {"method": "ptm"})
    assert (changed.images.skip_above, changed.schedule.length) == (2.0, 3)
    assert (changed.images.soft_labels, changed.schedule.kind) == (False, "progress")


def test_images_that_show_something_move_less_the_more_there_are_and_noise_moves_all_the_same():
    rates = {
        (init, ipc): resolve({"ipc": ipc, "images": {"init": init}}).images_lr
        for init in ("herding", "real", "noise")
        for ipc in (1, 4)
    }
    assert rates == {
        **{(init, 1): 0.1 for init in ("herding", "real", "noise")},
        ("herding", 4): 0.05,
        ("real", 4): 0.05,
        ("noise", 4): 0.1,
    }
