"""Several that distil one set: one mean gradient, one checkpoint, one set."""

import threading

import pytest
import torch

from ptm_ray.core.unroll import Gradients
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.scoring import Evaluator, InlineScorer
from ptm_ray.stages.team import Alone
from ptm_ray.store.checkpoints import RunFolder
from tests.small import InMemory, small_problem

PLAIN = {
    # Not kept in range: the mean of two pixels that were cut off is not the cut-off mean.
    "images": {"optimiser": "sgd", "lr": 0.5, "ema": 0.0, "inner_lr_lr": 0.01, "in_range": False},
    "overlap": {"enabled": False},
    "schedule": {"start": 0},
    "student": {"inner_lr": 0.02},
}
CYCLES = {"ipc": 4, "overlap": {"threshold": 5.0, "look_every": 3, "separate_steps": 2, "retrain_steps": 2}}
EASY_FIRST = {"method": "hoptm", "schedule": {"kind": "random"}, "matching": {"easy_every": 3}}


class Threads:
    """A team in one process: all of its members meet at every call."""

    def __init__(self, size):
        self.size, self._meet = size, threading.Barrier(size)
        self._said = [None] * size

    def member(self, rank):
        return Member(self, rank)

    def exchange(self, rank, value):
        self._said[rank] = value
        self._meet.wait(60)
        said = list(self._said)
        self._meet.wait(60)
        return said


class Member:
    def __init__(self, team, rank):
        self._team, self.rank, self.size, self.matchers = team, rank, team.size, (rank,)

    def mean(self, gradients):
        said = self._team.exchange(self.rank, gradients)
        return Gradients(*(torch.stack(parts).mean(0) for parts in zip(*said, strict=True)))

    def broadcast(self, value):
        return self._team.exchange(self.rank, value)[0]


class SecondAlone(Alone):
    """The second of two who hears nothing of the first."""

    rank = 1

    def __init__(self):
        self.matchers = (1,)


def distillation(problem, folder, trajectories, team=None):
    return Distillation(problem, trajectories, InlineScorer(Evaluator(problem)), RunFolder(folder), team)


def together(problem, root, trajectories, size, **limits):
    """The runs of all members, at their end."""
    team, runs = Threads(size), [None] * size

    def go(rank):
        runs[rank] = distillation(problem, root / str(rank), trajectories, team.member(rank))
        list(runs[rank].run(**limits))

    members = [threading.Thread(target=go, args=(rank,)) for rank in range(size)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    return runs


def moved(run, before):
    now = run.learner.synthetic
    return now.images - before.images, now.log_lr - before.log_lr


def test_the_step_of_two_is_the_mean_of_the_steps_of_each(tmp_path):
    problem = small_problem(**PLAIN)
    trajectories = InMemory(problem)
    before = distillation(problem, tmp_path / "none", trajectories).learner.synthetic
    first = distillation(problem, tmp_path / "first", trajectories)
    second = distillation(problem, tmp_path / "second", trajectories, SecondAlone())
    list(first.run(stop_after=1))
    list(second.run(stop_after=1))
    both = together(problem, tmp_path, trajectories, 2, stop_after=1)
    alone = moved(first, before), moved(second, before)
    # Pixels are of size 1, known to 1e-7; what they differ by must be well above that.
    assert (alone[0][0] - alone[1][0]).abs().max() > 1e-4
    for mean, one, other in zip(moved(both[0], before), *alone, strict=True):
        torch.testing.assert_close(mean, (one + other) / 2, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("settings", [PLAIN, CYCLES, EASY_FIRST], ids=["plain", "with cycles", "hoptm"])
def test_all_hold_the_same_set_at_the_end(tmp_path, settings):
    problem = small_problem(**settings)
    first, second = together(problem, tmp_path, InMemory(problem), 2)
    assert first.step == second.step == problem.config.outer_steps
    mine, other = first.learner.state_dict(), second.learner.state_dict()
    assert torch.equal(mine["images"], other["images"])
    assert settings is not EASY_FIRST or torch.equal(mine["easy"], other["easy"])
    assert torch.equal(mine["log_lr"], other["log_lr"])
    assert first.selection.scores == second.selection.scores
    assert first.cycles == second.cycles
    if "ipc" in settings:
        assert first.cycles


@pytest.mark.parametrize("settings", [PLAIN, CYCLES, EASY_FIRST], ids=["plain", "with cycles", "hoptm"])
def test_one_that_does_for_both_makes_the_set_of_two(tmp_path, settings):
    problem = small_problem(**settings, matchers=2)
    trajectories = InMemory(problem)
    first, _ = together(problem, tmp_path, trajectories, 2)
    alone = distillation(problem, tmp_path / "alone", trajectories)
    list(alone.run())
    assert torch.equal(alone.learner.synthetic.images, first.learner.synthetic.images)
    assert torch.equal(alone.learner.synthetic.log_lr, first.learner.synthetic.log_lr)
    assert alone.selection.scores == first.selection.scores


@pytest.mark.parametrize("settings", [CYCLES, EASY_FIRST], ids=["with cycles", "hoptm"])
def test_a_team_that_was_stopped_goes_on_from_the_first_one_s_checkpoint(tmp_path, settings):
    problem = small_problem(**settings)
    trajectories = InMemory(problem)
    whole, _ = together(problem, tmp_path / "whole", trajectories, 2)
    together(problem, tmp_path / "parts", trajectories, 2, stop_after=5)
    (tmp_path / "parts" / "1" / "checkpoint.pt").unlink()
    parts, second = together(problem, tmp_path / "parts", trajectories, 2)
    assert torch.equal(parts.learner.synthetic.images, whole.learner.synthetic.images)
    assert torch.equal(second.learner.synthetic.images, whole.learner.synthetic.images)
