"""Sweeps on a real cluster: shared experts, trials that survive, populations that exchange, one best set."""

import json
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

import ptm_ray as ptm
from ptm_ray.config.base import merge
from ptm_ray.errors import ConfigError, StoreError
from tests.processes import workers_named
from tests.small import SETTINGS, InMemory, small_dataset, small_problem
from tests.stages.test_distill import distillation

QUICK = merge(
    SETTINGS,
    {
        "overlap": {"look_every": 3, "separate_steps": 1, "retrain_steps": 1, "threshold": 5.0},
        "evaluation": {"compare_with": []},
    },
)
GRID = {"searcher": "grid", "settings": QUICK, "space": {"schedule.kind": ["count", "random"], "seed": [0, 1]}}
METRIC = "validation_balanced_accuracy"


def swept(asked, out, experts, workers=1):
    """With one worker, and trials that take turns in one process: starting a second one takes longer than it saves."""
    return ptm.sweep(asked, small_dataset(), out=out, experts_dir=experts, workers=workers)


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory):
    """A finished grid: its folder, its result, the folder of its experts."""
    root = tmp_path_factory.mktemp("sweep")
    return root / "out", swept(GRID, root / "out", root / "experts"), root


def table(out):
    return pq.read_table(out / "trials.parquet").to_pylist()


def reports(out):
    """What each trial reported, in turn."""
    files = (out / "tune" / "trials").glob("trial-*/result.json")
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_every_combination_is_tried_and_the_best_is_the_one_with_the_highest_score(made):
    out, result, _ = made
    rows = table(out)
    assert {(row["schedule.kind"], row["seed"]) for row in rows} == {
        (kind, seed) for kind in ("count", "random") for seed in (0, 1)
    }
    assert {row["outer_step"] for row in rows} == {SETTINGS["outer_steps"]}
    assert result.score == max(row[METRIC] for row in rows)
    assert (result.trials, result.failed) == (4, 0)
    assert {"trials.parquet", "trials.md", "parallel.png", "importance.png", "best", "tune", "run.json"} == {
        path.name for path in out.iterdir()
    }
    assert list((out / "tune").rglob("events.out.tfevents.*"))


def test_no_more_trials_are_at_once_than_workers_were_asked_for(made):
    """Of two CPUs the one: each trial's process is that of the one before it."""
    out, _, _ = made
    assert len({line["pid"] for trial in reports(out) for line in trial}) == 1


def test_experts_are_trained_once_for_all_trials(made):
    _, _, root = made
    assert len(list((root / "experts").glob("*/expert-*.arrow"))) == SETTINGS["experts"]["count"]


def test_a_trial_is_an_ordinary_distillation(made, tmp_path):
    """Bit for bit: what its settings give outside of a sweep."""
    _, result, root = made
    alone = ptm.distill(
        small_dataset(),
        out=tmp_path / "alone",
        experts_dir=root / "experts",
        workers=1,
        **merge(QUICK, {"schedule": {"kind": result.config["schedule.kind"]}, "seed": result.config["seed"]}),
    )
    here, there = ptm.SyntheticSet.load(alone.set), ptm.SyntheticSet.load(result.set)
    assert np.array_equal(here.images, there.images)
    assert there.recipe["config"]["schedule"]["kind"] == result.config["schedule.kind"]
    assert json.loads((result.set.parent / "result.json").read_text())["scores"] == alone.scores


def test_the_same_call_again_tries_nothing_new(made):
    out, result, root = made
    before = {path: path.read_text() for path in (out / "tune").rglob("progress.csv")}
    assert len(before) == 4
    again = swept(GRID, out, root / "experts")
    assert again == result
    assert {path: path.read_text() for path in (out / "tune").rglob("progress.csv")} == before


def test_another_sweep_is_refused_the_folder(made):
    out, _, root = made
    other = {**GRID, "space": {"seed": [5]}}
    with pytest.raises(StoreError, match="holds another run"):
        swept(other, out, root / "experts")
    with pytest.raises(StoreError, match="holds another run"):
        ptm.distill(small_dataset(), out=out, experts_dir=root / "experts", **SETTINGS)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cpus_per_trial": 5}, "no node has more than 2 CPUs"),
        ({"gpus_per_trial": 0.5}, "no node has more than 0 GPUs"),
    ],
)
def test_more_than_any_node_has_is_refused_at_once(made, tmp_path, more, words):
    started = time.monotonic()
    with pytest.raises(ConfigError, match=words):
        swept({**GRID, **more}, tmp_path / "out", made[2] / "experts")
    assert time.monotonic() - started < 20
    # Mended in the file, it is accepted in the same folder.
    assert not (tmp_path / "out").exists()


@ray.remote(num_cpus=1)
class Greedy:
    """An evaluator as it must not be: with a CPU of its own."""

    def ready(self):
        return True


@pytest.fixture(scope="module")
def single(made):
    """A sweep of one trial that holds both CPUs, what came of it, and whether an evaluator with a CPU had to wait."""
    out, asked = made[2] / "single", {**GRID, "cpus_per_trial": 2, "space": {"seed": [0]}}
    starved, seen = [], threading.Event()

    def watch():
        while not seen.is_set():
            if ray.available_resources().get("CPU", 0) < 1 and list(out.glob("tune/trials/trial-*")):
                greedy = Greedy.remote()
                starved.append(not ray.wait([greedy.ready.remote()], timeout=2)[0])
                ray.kill(greedy)
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = swept(asked, out, made[2] / "experts")
    seen.set()
    watcher.join()
    return asked, out, result, starved


def test_trials_that_hold_every_cpu_are_scored_all_the_same(single):
    """The case that would wait for good: a trial holds both CPUs and needs an evaluator to go on."""
    _, _, result, starved = single
    assert result.trials == 1
    assert starved == [True]


def test_a_sweep_whose_state_was_half_written_begins_again(single, made, caplog):
    asked, out, first, _ = single
    states = list(out.rglob("experiment_state-*.json"))
    assert states
    for state in states:
        state.write_text(state.read_text()[:100])
    again = swept(asked, out, made[2] / "experts")
    assert (again.trials, again.failed) == (1, 0)
    assert (again.config, again.score) == (first.config, first.score)
    assert "is damaged, and left out" in caplog.text


def test_a_trial_that_is_killed_goes_on_from_its_checkpoint(made, tmp_path, wait_until):
    settings = {**QUICK, "outer_steps": 40}
    asked = {**GRID, "settings": settings, "space": {"seed": [0]}}
    problem = small_problem(**settings)
    whole = distillation(problem, tmp_path / "whole", trajectories=InMemory(problem))
    list(whole.run())
    found = []
    run = threading.Thread(target=lambda: found.append(swept(asked, tmp_path / "out", made[2] / "experts")))
    run.start()
    wait_until(lambda: list((tmp_path / "out").glob("tune/trials/trial-*/checkpoint_*/checkpoint.pt")), 120)
    killed = wait_until(lambda: workers_named("ImplicitFunc"), 10)
    for process in killed:
        process.kill()
    run.join(200)
    (result,) = found
    assert (result.trials, result.failed) == (1, 0)
    (row,) = table(tmp_path / "out")
    assert (row["outer_step"], row["error"]) == (40, None)
    assert np.array_equal(ptm.SyntheticSet.load(result.set).images, whole.result().images.numpy())
    (reported,) = reports(tmp_path / "out")
    assert len({line["pid"] for line in reported}) == 2


def test_a_population_copies_and_perturbs(made, tmp_path):
    asked = {
        "searcher": "random",
        "scheduler": "pbt",
        "trials": 2,
        "grace": 4,
        "settings": {**QUICK, "outer_steps": 24},
        "space": {"images.lr": {"low": 0.001, "high": 0.5, "log": True}},
    }
    result = swept(asked, tmp_path / "out", made[2] / "experts", workers=2)
    assert (result.trials, result.failed) == (2, 0)
    (log,) = (tmp_path / "out" / "tune").rglob("pbt_global.txt")
    exchanges = [json.loads(line) for line in log.read_text().splitlines()]
    assert exchanges, "nothing was exchanged"
    for exchange in exchanges:
        old, new = exchange[4]["images.lr"], exchange[5]["images.lr"]
        assert old != new
    for row in table(tmp_path / "out"):
        assert 0.001 <= row["images.lr"] <= 0.5
        assert row["outer_step"] == 24


def test_optuna_and_asha_find_their_way_to_a_best_set(made, tmp_path):
    space = {"overlap.weight": {"low": 0.5, "high": 8, "log": True}, "schedule.kind": ["count", "progress"]}
    how = {"searcher": "optuna", "scheduler": "asha", "grace": 4}
    asked = {**how, "trials": 3, "settings": QUICK, "space": space}
    result = swept(asked, tmp_path / "out", made[2] / "experts")
    assert (result.trials, result.failed) == (3, 0)
    assert 0.5 <= result.config["overlap.weight"] <= 8
    assert (tmp_path / "out" / "weight.png").is_file()
    assert ptm.SyntheticSet.load(result.set).images.shape == (6, 3, 16, 16)


def test_trials_are_compared_by_the_metric_asked_for_and_end_once_they_reach_the_score(made, tmp_path):
    asked = {**GRID, "metric": "accuracy", "stop_at": 0.01, "space": {"experts.count": [2, 1]}}
    result = swept(asked, tmp_path / "out", made[2] / "experts")
    rows = table(tmp_path / "out")
    assert all(row["outer_step"] < SETTINGS["outer_steps"] for row in rows)
    assert result.score == max(row["validation_accuracy"] for row in rows)
    # Of the experts that they share, each matched as many as it asked for.
    assert rows[0]["loss"] != rows[1]["loss"]
    assert "validation accuracy, percent" in (tmp_path / "out" / "trials.md").read_text()
    # Whoever goes on with the best one there does not lose that to the same sweep again.
    best = tmp_path / "out" / "best"
    ptm.distill(small_dataset(), out=best, config=best / "run.json", experts_dir=made[2] / "experts", workers=1)
    assert swept(asked, tmp_path / "out", made[2] / "experts").score == result.score
    assert torch.load(best / "checkpoint.pt", weights_only=True)["step"] == SETTINGS["outer_steps"]
    assert json.loads((best / "result.json").read_text())["cost"]["outer_steps"] == SETTINGS["outer_steps"]


def test_a_trial_that_fails_is_in_the_table_and_the_others_go_on(made, tmp_path):
    # By the tenth outer step the first of the sets that wait to be scored has been: there is a checkpoint.
    space = {"student.inner_lr": [0.01, 1e30], "images.max_skipped": [10]}
    asked = {**GRID, "max_failures": 0, "space": space}
    result = swept(asked, tmp_path / "out", made[2] / "experts")
    assert (result.trials, result.failed) == (2, 1)
    errors = {row["student.inner_lr"]: row["error"] for row in table(tmp_path / "out")}
    assert errors[0.01] is None
    assert "updates in a row were skipped" in errors[1e30]
    # Gone on with, it tries again, from its checkpoint.
    assert swept(asked, tmp_path / "out", made[2] / "experts").failed == 1
    steps = [[line["outer_step"] for line in trial] for trial in reports(tmp_path / "out")]
    assert len(steps) == 2
    assert steps == [sorted(found) for found in steps]
