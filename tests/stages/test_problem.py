"""From settings and images to what the mathematics works on."""

import dataclasses

import pytest

from ptm_ray.config.files import resolve
from ptm_ray.stages.problem import Problem
from tests.small import SETTINGS, small_dataset


@pytest.mark.parametrize(
    ("side_matters", "mirror", "mirrored"),
    [(False, None, True), (True, None, False), (False, False, False), (True, True, True)],
)
def test_images_are_mirrored_unless_their_side_matters_or_the_settings_insist(side_matters, mirror, mirrored):
    dataset = dataclasses.replace(small_dataset(), side_matters=side_matters)
    problem = Problem(dataset, resolve(SETTINGS, {"mirror": mirror}))
    assert ("flip" in problem.ops) == mirrored
    assert len(set(problem.ops)) == len(problem.ops)


def test_experts_that_saw_mirrored_images_are_other_experts():
    plain, still = (Problem(small_dataset(), resolve(SETTINGS, {"mirror": mirror})) for mirror in (None, False))
    assert plain.expert_identity() != still.expert_identity()


def test_the_number_of_experts_is_no_part_of_what_an_expert_is():
    few, many = (Problem(small_dataset(), resolve(SETTINGS, {"experts": {"count": n}})) for n in (2, 20))
    assert few.expert_identity() == many.expert_identity()
