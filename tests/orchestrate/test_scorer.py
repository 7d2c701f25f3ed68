"""Scoring candidates on other workers."""

import time

import numpy as np
import ray
import torch

from ptm_ray.core.synthetic import Synthetic
from ptm_ray.orchestrate.workers import RemoteScorer


class Slow:
    """Scores more slowly than candidates come; what it finds is a candidate's first pixel."""

    def validate(self, synthetic):
        time.sleep(0.2)
        return np.array([synthetic[0][0, 0, 0, 0]])


def candidate(value):
    images = torch.full((2, 1, 4, 4), float(value))
    return Synthetic(images, classes=torch.tensor([0, 1]), log_lr=torch.tensor(0.0), num_classes=2)


def test_candidates_never_pile_up_and_every_score_comes_back(ray_cluster):
    slow = ray.remote(Slow).options(num_cpus=0).remote()
    scorer = RemoteScorer([slow.validate.remote], Slow().validate)
    for tag in range(8):
        scorer.submit(tag, candidate(tag))
    early = scorer.collect(wait=False)
    assert len(early) >= 8 - RemoteScorer.QUEUE_LENGTH
    assert sorted(early + scorer.collect(wait=True)) == [(tag, float(tag)) for tag in range(8)]
    assert scorer.collect(wait=True) == []
