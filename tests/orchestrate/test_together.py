"""Workers that match together through Ray Train give the set of a team in threads, though one of them is killed."""

import itertools
import os
import signal

import numpy as np
import pytest
import ray
import torch

import ptm_ray as ptm
from ptm_ray.errors import ConfigError
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.distill import Nobody, experts_with_progress
from ptm_ray.orchestrate.together import distil_together
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place
from tests.processes import workers_named
from tests.small import SETTINGS, InMemory, small_dataset, small_problem
from tests.stages.test_team import distillation, together


@pytest.fixture(scope="module")
def experts(ray_cluster, tmp_path_factory):
    """The folder of trained experts, and the buffer of them."""
    root, problem = tmp_path_factory.mktemp("experts"), small_problem()
    with Crew.start(ray.put(problem), 1) as crew:
        buffer = experts_with_progress(problem, crew, Place(root), Nobody())
    return root, buffer


def images_in(folder):
    return torch.load(folder.checkpoint_path, weights_only=True)["learner"]["images"]


class Steps:
    """A watcher that keeps how many outer steps it was told are done, each time."""

    def __init__(self):
        self.done = []

    def update(self, stage, done, total, words=""):
        if stage == "distilling":
            self.done.append(done)


def test_two_matchers_give_the_set_of_a_team_of_two(experts, tmp_path):
    steps = Steps()
    where = {"out": tmp_path / "out", "experts_dir": experts[0], "watcher": steps}
    made = ptm.distill(small_dataset(), **where, **SETTINGS, matchers=2)
    assert steps.done == list(range(1, SETTINGS["outer_steps"] + 1))
    problem = small_problem(matchers=2)
    first, _ = together(problem, tmp_path, InMemory(problem), 2)
    kept = ptm.SyntheticSet.load(made.set)
    assert np.array_equal(kept.images, first.result().images.numpy())
    assert made.cost["outer_steps"] == SETTINGS["outer_steps"]
    assert not (tmp_path / "out" / "together").exists()
    alone = distillation(small_problem(), tmp_path / "alone", InMemory(problem))
    list(alone.run())
    assert not torch.equal(alone.learner.synthetic.images, first.learner.synthetic.images)


def test_a_worker_that_is_lost_costs_no_more_than_the_steps_since_the_last_checkpoint(experts, tmp_path):
    problem, folder, shown, killed = small_problem(outer_steps=12), RunFolder(tmp_path / "two"), [], []
    folder.claim({})

    def show(row):
        shown.append(row.outer_step)
        if row.outer_step >= 3 and not killed:
            victim = workers_named("RayTrainWorker")[-1].pid
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    distil_together(ray.put(problem), experts[1], [], folder, 2, None, show, checkpoint_every_s=0.0)
    assert killed
    first, _ = together(problem, tmp_path, InMemory(problem), 2)
    assert torch.equal(images_in(folder), first.learner.synthetic.images)
    assert shown[-1] == 11
    again = [later for earlier, later in itertools.pairwise(shown) if later <= earlier]
    assert all(step > 0 for step in again), "it began anew"


def test_more_matchers_than_cpus_are_refused_before_any_expert_trains(ray_cluster, tmp_path):
    settings = {**SETTINGS, "experts": {**SETTINGS["experts"], "count": 3}}
    with pytest.raises(ConfigError, match="3 matchers want a CPU each, but there are 2; lower matchers"):
        ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=tmp_path / "ex", **settings, matchers=3)
    assert not (tmp_path / "ex").exists()
    with pytest.raises(ConfigError, match="3 matchers want an expert each, but there are 2"):
        ptm.distill(small_dataset(), out=tmp_path / "out", experts_dir=tmp_path / "ex", **SETTINGS, matchers=3)
