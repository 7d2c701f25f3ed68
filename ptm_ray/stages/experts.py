"""Training experts: what an expert actor does."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ptm_ray.core.expert import ExpertTraining, log_shares
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.trajectory import Trajectory, Vector
from ptm_ray.core.types import Tensor
from ptm_ray.stages.problem import Problem
from ptm_ray.store.places import Place
from ptm_ray.store.trajectories import TrajectoryStore


class ExpertTrainer:
    """Holds the images once and trains any number of experts on them."""

    def __init__(self, problem: Problem) -> None:
        self._problem, settings = problem, problem.experts
        self._network = problem.network(precision=settings.precision)
        images, labels = problem.tensors("train")
        weight = settings.logit_adjustment
        self._training = ExpertTraining(
            self._network,
            images,
            labels,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
            ops=problem.ops if settings.augment else (),
            flat_radius=settings.flat_radius,
            flat_gap=settings.flat_gap,
            shift=weight * log_shares(labels, problem.dataset.num_classes) if weight else None,
        )

    def snapshots(self, expert: int) -> Iterator[Vector]:
        """Yields the expert's parameters, (params,) float32, at every snapshot as it is made."""
        for (vector,) in self.snapshots_of([expert]):
            yield vector

    def snapshots_of(self, experts: Sequence[int]) -> Iterator[list[Vector]]:
        """The same of several, which are trained side by side where that is faster."""
        seeds = Seeds(self._problem.experts.seed)
        starts = [self._network.init(seeds.stream("expert initialisation", expert)) for expert in experts]
        yield from self._train(starts, [seeds.stream("expert training", expert) for expert in experts])

    def continued(self, start: Tensor, stage: int, expert: int) -> Iterator[Vector]:
        """The same of one, from parameters that have learned something already, before a stage of a distillation."""
        draw = Seeds(self._problem.experts.seed).stream("continued expert", stage, expert)
        for (vector,) in self._train([start], [draw]):
            yield vector

    def _train(self, starts: Sequence[Tensor], draws: Sequence[torch.Generator]) -> Iterator[list[Vector]]:
        starts = [start.to(self._problem.device) for start in starts]
        for thetas in self._training.snapshots(starts, self._problem.snapshot_steps(), draws):
            yield [theta.cpu().numpy() for theta in thetas]

    def train_into(self, store: TrajectoryStore, experts: Sequence[int]) -> Iterator[Vector]:
        """Yields each expert's in turn, snapshot after snapshot, and writes their files once the last one is made."""
        made = []
        for vectors in self.snapshots_of(experts):
            made.append(vectors)
            # Ray sends into what it streams from, which a list can't take.
            yield from (vector for vector in vectors)
        for expert, own in zip(experts, zip(*made, strict=True), strict=True):
            store.write(Trajectory(expert, own, self._problem.epochs()))


def kinds_wanted(problems: Iterable[Problem]) -> dict[str, Problem]:
    """The name of each kind of expert, and the problem that wants the most of them."""
    wanted: dict[str, Problem] = {}
    for problem in problems:
        key = store_of(problem, "").key
        if key not in wanted or problem.config.num_experts > wanted[key].config.num_experts:
            wanted[key] = problem
    return wanted


def store_of(problem: Problem, root: str | Path | Place) -> TrajectoryStore:
    """The trajectory store of a problem's experts below `root`."""
    return TrajectoryStore(Place.of(root), problem.expert_identity(), problem.network().num_params)
