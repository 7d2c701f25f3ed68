"""A problem small enough to be distilled in seconds: cellphantom's own images, every other pixel of them."""

import functools

import numpy as np

from ptm_ray.config.files import resolve
from ptm_ray.data.dataset import MedicalDataset, Split
from ptm_ray.data.phantom import cellphantom
from ptm_ray.stages.experts import ExpertTrainer
from ptm_ray.stages.problem import Problem

CLASSES = 3

SETTINGS = {
    "ipc": 2,
    "outer_steps": 12,
    "network": {"width": 8, "depth": 2},
    "experts": {"count": 2, "steps": 20, "snapshots": 5, "spacing": 1.0, "batch_size": 32},
    "schedule": {"kind": "count", "end_min": 1, "growth": 8, "later_share": 0.0},
    "student": {"steps_per_snapshot": 1.0, "steps_min": 2, "steps_max": 4},
    "evaluation": {
        "seeds": 2,
        "random_draws": 2,
        "steps": 15,
        "full_steps": 20,
        "validate_every": 4,
        "validation_networks": 1,
        "validation_steps": 20,
    },
}


@functools.cache
def small_dataset() -> MedicalDataset:
    whole = cellphantom()

    def cut(split: Split, per_class: int) -> Split:
        rows = np.concatenate([np.flatnonzero(split.labels == label)[:per_class] for label in range(CLASSES)])
        return Split(np.ascontiguousarray(split.images[rows, ::2, ::2]), split.labels[rows])

    return MedicalDataset(
        "small", cut(whole.train, 40), cut(whole.val, 10), cut(whole.test, 15), whole.class_names[:CLASSES], whole.task
    )


def small_problem(**settings) -> Problem:
    """`settings` are laid over SETTINGS, nested ones table by table."""
    return Problem(small_dataset(), resolve(SETTINGS, settings)).check()


class InMemory:
    """Trajectories that were trained here and now."""

    def __init__(self, problem):
        trainer = ExpertTrainer(problem)
        self._vectors = [list(trainer.snapshots(expert)) for expert in range(problem.experts.count)]

    @property
    def num_experts(self):
        return len(self._vectors)

    def vector(self, expert, snapshot):
        return self._vectors[expert][snapshot]
