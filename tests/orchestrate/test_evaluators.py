"""Evaluations on a real cluster: whoever trains a network, and beside which others, it predicts the same."""

import math
import os
import signal

import numpy as np
import pytest
import ray
import torch

from ptm_ray.evaluation.protocol import jobs
from ptm_ray.orchestrate import evaluators
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.evaluators import LEGS, Waiting, predict
from ptm_ray.stages.scoring import Evaluator
from tests.small import small_problem


@pytest.mark.parametrize(("count", "workers"), [(5, 2), (3, 2), (7, 3), (4, 2), (12, 4), (2, 2), (1, 4)])
def test_no_worker_has_nothing_to_do_while_another_has_two_legs_left(count, workers):
    """Of jobs that take a second each, in legs of equal length: how long all of them take."""
    waiting, now, sent = Waiting(jobs(["synthetic"], ["convnet"], count, 1)), 0.0, 0
    running = []
    while waiting or running:
        while waiting and len(running) < workers:
            task, leg = waiting.take(len(running), workers)
            running.append((now + (1 if leg else task.legs) / LEGS, task, leg))
            sent += leg
        now, task, leg = running.pop(running.index(min(running, key=lambda run: run[0])))
        if leg:
            waiting.put(task.after_a_leg(1 / LEGS, begun=None))
    assert sent < LEGS * 2 * workers
    assert sent == 0 or count > workers
    assert now == pytest.approx(max(1, math.ceil(count * LEGS / workers) / LEGS))


@pytest.mark.usefixtures("ray_cluster")
def test_networks_predict_the_same_alone_and_several_to_a_job():
    problem = small_problem(evaluation={"steps": 6, "full_steps": 6})
    asked, seen = (("random", "full"), ("convnet",), 3, 2), []
    with Crew.start(ray.put(problem), 2) as crew:
        alone = predict(crew, jobs(*asked), None, 1, lambda *_: None)
        parts = predict(crew, jobs(*asked, together=2), None, 1, lambda *now: seen.append(now))
        pixels = problem.dataset.val.images[:5]
        others = predict(crew, jobs(*asked)[:1], None, 1, lambda *_: None, pixels)
    here = Evaluator(problem)
    expected = np.stack([shares for job in jobs(*asked) for shares in here.predict(job, None, 1)])
    assert expected.shape == (9, 45, 3)
    assert np.array_equal([shares for job in jobs(*asked) for shares in alone[job]], expected)
    assert np.array_equal([shares for job in jobs(*asked, together=2) for shares in parts[job]], expected)
    (theirs,) = others[jobs(*asked)[0]]
    (ours,) = here.predict(jobs(*asked)[0], None, 1, torch.tensor(problem.normalise(pixels)))
    assert np.array_equal(theirs, ours)
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.usefixtures("ray_cluster")
def test_no_job_is_handed_on_to_a_worker_that_was_lost_with_the_first(monkeypatch):
    monkeypatch.setattr(evaluators, "TRIES", 2)
    problem = small_problem(evaluation={"steps": 6, "full_steps": 6})
    (job, *_) = jobs(("random",), ("convnet",), 1, 1)
    with Crew.start(ray.put(problem), 2) as crew:
        for process in ray.get([member.process_id.remote() for member in crew.members]):
            os.kill(process, signal.SIGKILL)
        found = predict(crew, [job], None, 1, lambda *_: None)
        assert len(crew.members) + len(crew.arriving) == 2
    assert np.array_equal(found[job], Evaluator(problem).predict(job, None, 1))
