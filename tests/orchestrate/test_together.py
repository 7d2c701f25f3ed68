"""Workers that match together through Ray Train give the set of a team in threads, though one of them is killed."""

import itertools
import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import ptm_ray as ptm
from ptm_ray.errors import ConfigError, WorkerFailed
from ptm_ray.orchestrate import together
from ptm_ray.store.checkpoints import RunFolder
from tests.files import write_dataset
from tests.processes import assert_says_that_it_was_interrupted, interruptible_command, workers_named
from tests.small import SETTINGS, InMemory, small_dataset, small_problem
from tests.stages.test_team import distillation
from tests.stages.test_team import together as team_of

#: Each with a checkpoint, for which Train takes two seconds.
FEWER = {"outer_steps": 6}


@pytest.fixture(scope="module")
def experts_dir(tmp_path_factory):
    """Trained by the first test that needs them."""
    return tmp_path_factory.mktemp("together") / "experts"


class Killer:
    """A watcher that kills a worker once two outer steps are done, and keeps how many it was told of, each time."""

    def __init__(self):
        self.done, self.killed = [], []

    def update(self, stage, done, total, words=""):
        if stage == "distilling":
            self.done.append(done)
            if done > 2 and not self.killed:
                self.killed.append(workers_named("RayTrainWorker")[-1].pid)
                os.kill(self.killed[0], signal.SIGKILL)


def test_two_give_the_set_of_a_team_of_two_though_one_is_lost_after_a_checkpoint(
    ray_cluster, tmp_path, experts_dir, monkeypatch
):
    monkeypatch.setattr(together, "CHECKPOINT_EVERY_S", 0.0)
    watcher, problem = Killer(), small_problem(**FEWER, matchers=2)
    where = {"out": tmp_path / "out", "experts_dir": experts_dir, "watcher": watcher}
    made = ptm.distill(small_dataset(), **where, **{**SETTINGS, **FEWER}, matchers=2)
    first, _ = team_of(problem, tmp_path, InMemory(problem), 2)
    kept = ptm.SyntheticSet.load(made.set)
    assert np.array_equal(kept.images, first.result().images.numpy())
    assert made.cost["outer_steps"] == FEWER["outer_steps"]
    assert not (tmp_path / "out" / "together").exists()
    alone = distillation(small_problem(**FEWER), tmp_path / "alone", InMemory(problem))
    list(alone.run())
    assert not torch.equal(alone.learner.synthetic.images, first.learner.synthetic.images)

    assert watcher.killed
    assert watcher.done[-1] == FEWER["outer_steps"]
    assert set(watcher.done) == set(range(1, FEWER["outer_steps"] + 1))
    again = [later for earlier, later in itertools.pairwise(watcher.done) if later <= earlier]
    assert all(step > 1 for step in again), "it began anew"


def test_interrupting_them_is_said_as_of_any_run(ray_cluster, tmp_path, experts_dir, wait_until):
    write_dataset(tmp_path / "cells.npz", small_dataset())
    (tmp_path / "quick.json").write_text(json.dumps({**SETTINGS, "outer_steps": 100_000, "matchers": 2}))
    words = ("distill", "--data", "cells.npz", "--config", "quick.json", "--out", "out", "--experts-dir")
    command = interruptible_command((*words, str(experts_dir)), tmp_path, ray_cluster["address"])
    wait_until(lambda: workers_named("RayTrainWorker"), 200)
    command.send_signal(signal.SIGINT)
    assert_says_that_it_was_interrupted(command)
    wait_until(lambda: ray.available_resources().get("CPU") == 2, 60)


def leave_a_checkpoint(parts):
    """What a member of five outer steps leaves with Train."""
    with tempfile.TemporaryDirectory() as scratch:
        together.Reported(Path(scratch), first=True).save_checkpoint({"step": 5})


def test_whoever_goes_on_in_another_way_takes_the_checkpoint_that_is_further(ray_cluster, tmp_path):
    folder = RunFolder(tmp_path)
    together.take_over_what_is_left(folder)
    assert folder.load_checkpoint() is None
    storage = RunConfig(name=together.NAME, storage_path=str(tmp_path))
    TorchTrainer(leave_a_checkpoint, scaling_config=ScalingConfig(num_workers=1), run_config=storage).fit()
    for held, further in ((None, 5), (3, 5), (7, 7)):
        if held:
            folder.save_checkpoint({"step": held})
        together.take_over_what_is_left(folder)
        assert folder.load_checkpoint()["step"] == further


@ray.remote(num_cpus=1)
class Greedy:
    """Whoever else has a CPU."""

    def ready(self):
        return True


def test_those_for_whom_there_is_no_room_give_up_in_a_line(ray_cluster, tmp_path, monkeypatch, wait_until):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    greedy = Greedy.remote()
    ray.get(greedy.ready.remote())
    problem = small_problem(**FEWER)
    parts = (ray.put(problem), InMemory(problem), [], RunFolder(tmp_path), 2, None, lambda row: None)
    with pytest.raises(WorkerFailed, match=r"distilling together failed \(.*timed out.*\); run the same") as caught:
        together.distil_together(*parts)
    assert "\n" not in str(caught.value)
    ray.kill(greedy)
    wait_until(lambda: ray.available_resources().get("CPU") == 2, 60)


def test_more_matchers_than_cpus_are_refused_before_any_expert_trains(ray_cluster, tmp_path):
    settings = {**SETTINGS, "experts": {**SETTINGS["experts"], "count": 3}}
    with pytest.raises(ConfigError, match="3 matchers want a CPU each, but there are 2; lower matchers"):
        ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=tmp_path / "ex", **settings, matchers=3)
    assert not (tmp_path / "ex").exists()
    # With fewer of them, it is accepted in the same folder.
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="3 matchers want an expert each, but there are 2"):
        ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=tmp_path / "ex", **SETTINGS, matchers=3)
