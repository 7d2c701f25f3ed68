"""Evaluations on a real cluster: whoever trains a network, and beside which others, it scores the same."""

import pytest
import ray

from ptm_ray.evaluation.protocol import jobs
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.evaluators import evaluate
from ptm_ray.stages.scoring import Evaluator
from tests.small import small_problem

pytestmark = pytest.mark.usefixtures("ray_cluster")


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
