"""Scoring candidates on other workers."""

import time

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import OutOfMemoryError

from ptm_ray.core.synthetic import Synthetic
from ptm_ray.orchestrate.workers import RemoteScorer


class Slow:
    """Scores more slowly than candidates come; what it finds is a candidate's first pixel."""

    def validate(self, synthetic):
        time.sleep(0.2)
        return np.array([synthetic[0][0, 0, 0, 0]])

    def run_out_of_memory(self, synthetic):
        """As Ray's memory monitor has it: that is no actor's death to Ray."""
        raise OutOfMemoryError("1 worker was killed due to the node running low on memory")


@pytest.fixture(scope="module")
def slow(ray_cluster):
    return ray.remote(Slow).options(num_cpus=0).remote()


def candidate(value):
    images = torch.full((2, 1, 4, 4), float(value))
    return Synthetic(images, classes=torch.tensor([0, 1]), log_lr=torch.tensor(0.0), num_classes=2)


def test_candidates_never_pile_up_and_every_score_comes_back(slow):
    scorer = RemoteScorer([slow.validate.remote], Slow().validate)
    for tag in range(8):
        scorer.submit(tag, candidate(tag))
    early = scorer.collect(wait=False)
    assert len(early) >= 8 - RemoteScorer.QUEUE_LENGTH
    assert sorted(early + scorer.collect(wait=True)) == [(tag, float(tag)) for tag in range(8)]
    assert scorer.collect(wait=True) == []


def test_what_was_asked_of_one_that_ran_out_of_memory_is_asked_of_the_others(slow):
    scorer = RemoteScorer([slow.run_out_of_memory.remote, slow.validate.remote], Slow().validate)
    for tag in range(3):
        scorer.submit(tag, candidate(tag))
    assert sorted(scorer.collect(wait=True)) == [(tag, float(tag)) for tag in range(3)]
