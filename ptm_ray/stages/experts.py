"""Training one expert: what an expert actor does."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ptm_ray.core.expert import log_shares, train_expert
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.trajectory import Trajectory, Vector
from ptm_ray.core.types import Tensor
from ptm_ray.stages.problem import Problem
from ptm_ray.store.places import Place
from ptm_ray.store.trajectories import TrajectoryStore


class ExpertTrainer:
    """Holds the images once and trains any number of experts on them."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._network = problem.network(precision=problem.experts.precision)
        self._images, self._labels = problem.tensors("train")
        weight = problem.experts.logit_adjustment
        self._shift = weight * log_shares(self._labels, problem.dataset.num_classes) if weight else None

    def snapshots(self, expert: int) -> Iterator[Vector]:
        """Yields the expert's parameters, (params,) float32, at every snapshot as it is made."""
        seeds = Seeds(self._problem.experts.seed)
        start = self._network.init(seeds.stream("expert initialisation", expert)).to(self._problem.device)
        yield from self._train(start, seeds.stream("expert training", expert))

    def continued(self, start: Tensor, stage: int, expert: int) -> Iterator[Vector]:
        """The same from parameters that have learned something already, before a stage of a distillation."""
        yield from self._train(start, Seeds(self._problem.experts.seed).stream("continued expert", stage, expert))

    def _train(self, start: Tensor, generator: torch.Generator) -> Iterator[Vector]:
        settings = self._problem.experts
        trained = train_expert(
            self._network,
            start,
            self._images,
            self._labels,
            snapshot_steps=self._problem.snapshot_steps(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
            ops=self._problem.ops if settings.augment else (),
            generator=generator,
            flat_radius=settings.flat_radius,
            flat_gap=settings.flat_gap,
            shift=self._shift,
        )
        for theta in trained:
            yield theta.cpu().numpy()

    def train_into(self, store: TrajectoryStore, expert: int) -> Iterator[Vector]:
        """The same, and writes the expert's file once the last snapshot is made."""
        vectors = []
        for vector in self.snapshots(expert):
            vectors.append(vector)
            yield vector
        store.write(Trajectory(expert, tuple(vectors), self._problem.epochs()))


def store_of(problem: Problem, root: str | Path | Place) -> TrajectoryStore:
    """The trajectory store of a problem's experts below `root`."""
    return TrajectoryStore(Place.of(root), problem.expert_identity(), problem.network().num_params)
