"""Workers that match together through Ray Train give the set of a team in threads, though one of them is killed."""

import itertools
import os
import signal

import numpy as np
import pytest
import torch

import ptm_ray as ptm
from ptm_ray.errors import ConfigError
from ptm_ray.orchestrate import together
from tests.processes import workers_named
from tests.small import SETTINGS, InMemory, small_dataset, small_problem
from tests.stages.test_team import distillation
from tests.stages.test_team import together as team_of

#: Each with a checkpoint, for which Train takes two seconds.
FEWER = {"outer_steps": 8}


class Killer:
    """A watcher that kills a worker once three outer steps are done, and keeps how many it was told of, each time."""

    def __init__(self):
        self.done, self.killed = [], []

    def update(self, stage, done, total, words=""):
        if stage == "distilling":
            self.done.append(done)
            if done > 3 and not self.killed:
                self.killed.append(workers_named("RayTrainWorker")[-1].pid)
                os.kill(self.killed[0], signal.SIGKILL)


def test_two_give_the_set_of_a_team_of_two_though_one_is_lost_after_a_checkpoint(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "CHECKPOINT_EVERY_S", 0.0)
    watcher, problem = Killer(), small_problem(**FEWER, matchers=2)
    where = {"out": tmp_path / "out", "experts_dir": tmp_path / "experts", "watcher": watcher}
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


def test_more_matchers_than_cpus_are_refused_before_any_expert_trains(ray_cluster, tmp_path):
    settings = {**SETTINGS, "experts": {**SETTINGS["experts"], "count": 3}}
    with pytest.raises(ConfigError, match="3 matchers want a CPU each, but there are 2; lower matchers"):
        ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=tmp_path / "ex", **settings, matchers=3)
    assert not (tmp_path / "ex").exists()
    # With fewer of them, it is accepted in the same folder.
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="3 matchers want an expert each, but there are 2"):
        ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=tmp_path / "ex", **SETTINGS, matchers=3)
