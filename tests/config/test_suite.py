"""What a suite of a benchmark may say, and how it is refused."""

import math
from pathlib import Path

import pytest

from ptm_ray.config.files import read_table
from ptm_ray.config.presets import KINDS, METHODS, OURS, TRAJECTORY
from ptm_ray.config.suite import Cell, SuiteConfig, read_suite
from ptm_ray.core.schedule import Segment, student_steps
from ptm_ray.errors import ConfigError

READY = sorted((Path(__file__).parents[2] / "tune_configs" / "suites").glob("*.toml"))
SMALL = {"name": "small", "datasets": ["cellphantom"], "ipc": [1], "methods": ["ptm", "random"]}


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_suites_are_accepted(path):
    assert read_suite(path).name == path.stem


@pytest.mark.parametrize(("name", "usual", "most"), [("mdd", 40, 80), ("local-gpu", 30, 60)])
def test_where_students_are_long_those_of_ptm_alone_grow_with_the_segment(name, usual, most):
    suite = read_suite(READY[0].with_name(f"{name}.toml"))
    for method in (method for method in suite.methods if suite.kind(method) == TRAJECTORY):
        config = suite.config(Cell(suite.datasets[0], 10, method, 0))
        lengths = [Segment(0, end) for end in (config.schedule.length, config.end_max // 2, config.end_max)]
        student = config.student
        found = [
            student_steps(one, student.steps_per_snapshot, student.steps_min, config.student_steps_max)
            for one in lengths
        ]
        assert found == [usual, usual, most if method == OURS else usual]


def test_all_ready_suites_were_found():
    assert {"smoke", "local"} <= {path.stem for path in READY}


def test_every_method_has_a_kind():
    assert KINDS.keys() == {*METHODS, "full"}


def test_what_is_varied_of_ptm_is_none_of_the_earlier_methods_whatever_it_is_called():
    methods = {"ptm": {}, "mtt": {}, "half": {"method": "ptm", "ipc": 2}, "ptm-like": {"method": "mtt", "ipc": 2}}
    kinds = SuiteConfig.of({"name": "few", "datasets": ["cellphantom"], "ipc": [1], "methods": methods}).kinds()
    assert kinds == {"ptm": "trajectory", "mtt": "trajectory", "half": "variant", "ptm-like": "trajectory"}


def test_cells_are_every_combination_once_and_full_data_once_a_dataset():
    suite = SuiteConfig.of(
        {**SMALL, "datasets": ["a.npz", "b"], "ipc": [1, 10], "methods": ["ptm", "full"], "seeds": 2}
    )
    cells = suite.cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 + 2
    assert [cell for cell in cells if cell.method == "full"] == [Cell("a.npz", 0, "full", 0), Cell("b", 0, "full", 0)]
    # All methods of a seed and an ipc come before the next ipc, those before the next seed.
    assert [(cell.seed, cell.ipc) for cell in cells[2:]] == [(0, 1)] * 2 + [(0, 10)] * 2 + [(1, 1)] * 2 + [(1, 10)] * 2


def test_a_cell_s_own_settings_win_over_the_suite_s_and_those_over_the_method_s():
    suite = SuiteConfig.of(
        {
            **SMALL,
            "methods": {"short": {"method": "mtt", "student": {"steps_max": 3, "steps_min": 3}}, "mtt": {}},
            "settings": {"student": {"steps_min": 5, "steps_max": 7}, "images": {"lr": 0.2}},
        }
    )
    short, mtt = (suite.config(Cell("pathmnist@64", 2, name, 4)) for name in ("short", "mtt"))
    assert (short.data, short.size, short.ipc, short.seed, short.method) == ("pathmnist", 64, 2, 4, "mtt")
    assert (short.student.steps_max, mtt.student.steps_min, mtt.student.steps_max) == (3, 5, 7)
    assert short.images.lr == mtt.images.lr == 0.2
    assert mtt.schedule.kind == "random"


def test_a_dataset_s_settings_are_its_cells_alone_and_a_method_s_go_before_them():
    tables = {"xray@64": {"mirror": False, "images": {"lr": 0.2}}}
    methods = {"ptm": {}, "slow": {"method": "ptm", "images": {"lr": 0.1}}}
    suite = SuiteConfig.of({**SMALL, "datasets": ["b", "xray@64"], "dataset_settings": tables, "methods": methods})
    found = {
        (dataset, method): suite.config(Cell(dataset, 1, method, 0)) for dataset in suite.datasets for method in methods
    }
    assert {key: (config.mirror, config.images.lr) for key, config in found.items()} == {
        ("b", "ptm"): (None, None),
        ("b", "slow"): (None, 0.1),
        ("xray@64", "ptm"): (False, 0.2),
        ("xray@64", "slow"): (False, 0.1),
    }


def test_time_ends_what_is_learned_and_nothing_else_is_learned():
    suite = SuiteConfig.of({**SMALL, "methods": ["ptm", "herding", "full"], "budget_minutes": 1})
    steps = {method: suite.config(Cell("cellphantom", 1, method, 0)).most_steps(60.0) for method in suite.methods}
    assert steps["herding"] == steps["full"] == 0
    assert steps["ptm"] == math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["ptm", "mttt"]}, ["mttt", "did you mean 'mtt'"]),
        ({"methods": {"a": {"method": "ptn"}}}, ["methods.a", "unknown method 'ptn'", "did you mean 'ptm'"]),
        ({"methods": {"a": {"method": "ptm", "images": {"lrr": 1}}}}, ["methods.a", "images.lrr", "did you mean 'lr'"]),
        ({"methods": {"a": {"method": "ptm"}, "b": {"method": "ptm"}}}, ["'a' and 'b' are the same"]),
        ({"methods": {"ptm": {}, "b": {"method": "ptm"}}}, ["'ptm' and 'b' are the same"]),
        ({"methods": ["ptm", "ptm"]}, ["methods name 'ptm' twice"]),
        ({"ipc": [1, 1]}, ["ipc name 1 twice"]),
        ({"ipc": [0]}, ["ipc", "got 0"]),
        ({"datasets": ["a", "a"]}, ["datasets name 'a' twice"]),
        ({"datasets": ["x/a.npz", "y/a.npz"]}, ["'a' twice"]),
        ({"datasets": ["a@big"]}, ["what follows @ is a size"]),
        ({"datsets": ["a"]}, ["unknown setting 'datsets'", "did you mean 'datasets'"]),
        ({"conditions": ["unifed"]}, ["unifed", "did you mean 'unified'"]),
        ({"conditions": ["twin"]}, ["conditions", "unified"]),
        ({"settings": {"ipcs": 1}}, ["unknown setting 'ipcs'"]),
        ({"name": "My Suite"}, ["name", "'My Suite'"]),
        ({"methods": {"mine": {"sets": "a"}}, "ipc": [1, 2]}, ["methods.mine.sets", "'a'", "put {ipc} in it"]),
        ({"methods": {"mine": {"sets": "a-{ipc}"}}, "datasets": ["a", "b"]}, ["put {dataset} in it"]),
        ({"methods": {"mine": {"sets": "a", "ipc": 3}}}, ["methods.mine", "nothing else"]),
        ({"dataset_settings": {"cellphantm": {}}}, ["'cellphantm'", "did you mean 'cellphantom'"]),
        ({"dataset_settings": {"cellphantom": {"mirrors": True}}}, ["on cellphantom", "did you mean 'mirror'"]),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(change, words):
    with pytest.raises(ConfigError) as caught:
        SuiteConfig.of({**SMALL, **change}).check()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_method_of_one_s_own_is_where_its_sets_lie():
    suite = SuiteConfig.of(
        {
            **SMALL,
            "datasets": ["x/a.npz", "b"],
            "ipc": [1, 2],
            "seeds": 2,
            "methods": {"ptm": {}, "mine": {"sets": "s/{dataset}-{ipc}-{seed}"}, "once": {"sets": "{dataset}/{ipc}"}},
        }
    ).check()
    assert suite.kinds() == {"ptm": "trajectory", "mine": "given", "once": "given"}
    assert suite.set_of(Cell("x/a.npz", 2, "mine", 1)) == "s/a-2-1"
    assert suite.set_of(Cell("b", 1, "ptm", 0)) is None
    seeds = [cell.seed for cell in suite.cells() if (cell.method, cell.dataset, cell.ipc) == ("mine", "b", 1)]
    # Where a set says nothing of a seed, there is one for all of them.
    once = [cell.seed for cell in suite.cells() if (cell.method, cell.dataset, cell.ipc) == ("once", "b", 1)]
    assert (seeds, once) == ([0, 1], [0])
    assert suite.config(Cell("b", 2, "mine", 0)).num_experts == 0


def test_a_list_of_methods_is_kept_as_the_table_that_it_means():
    suite = SuiteConfig.of(SMALL)
    assert suite.methods == {"ptm": {"method": "ptm"}, "random": {"method": "random"}}
    assert SuiteConfig.of(suite.model_dump(mode="json")) == suite
    assert read_table(READY[0])["datasets"]
