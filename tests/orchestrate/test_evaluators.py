"""Evaluations on a real cluster: whoever trains a network, and beside which others, it scores the same."""

import math

import pytest
import ray

from ptm_ray.evaluation.protocol import jobs
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.evaluators import LEGS, Waiting, evaluate
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
def test_networks_score_the_same_alone_and_several_to_a_job():
    problem = small_problem(evaluation={"steps": 6, "full_steps": 6})
    asked, seen = (("random", "full"), ("convnet",), 3, 2), []
    with Crew.start(ray.put(problem), 2) as crew:
        alone = evaluate(crew, jobs(*asked), None, 1, lambda *_: None)
        parts = evaluate(crew, jobs(*asked, together=2), None, 1, lambda *now: seen.append(now))
    here = Evaluator(problem)
    expected = [metrics for job in jobs(*asked) for metrics in here.run(job, None, 1)]
    assert len(expected) == 9
    assert [metrics for job in jobs(*asked) for metrics in alone[job]] == expected
    assert [metrics for job in jobs(*asked, together=2) for metrics in parts[job]] == expected
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
