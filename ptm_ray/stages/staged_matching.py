"""Subsets learned one after another, each on trajectories that go on from those before it: SeqMatch and PDD.

Sources: Du et al. 2023 (Sequential subset matching for dataset distillation); Chen et al. 2024 (Data distillation can
be like vodka: distilling more times for better quality). Not as published: there are fewer stages, of fewer steps, with
fewer experts, as fits runs of minutes; and every stage matches as much of the trajectories as the first, where SeqMatch
gives each a stretch of its own. (Evaluation networks see one subset after another in a benchmark's `published` track
alone, and else the whole set at once, as with every other method.)

With two subsets, and so at two images per class, the two methods are the same; with one both are MTT.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from ptm_ray.config import DistillConfig
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Position, Synthetic, class_rows, inner_batches
from ptm_ray.core.trajectory import TrajectorySource, Vector
from ptm_ray.core.types import Int, Tensor
from ptm_ray.core.unroll import roll_out
from ptm_ray.stages.experts import ExpertTrainer
from ptm_ray.stages.matching import Row, Workplace
from ptm_ray.stages.mitigation import CycleRow
from ptm_ray.stages.trajectory_matching import TrajectoryMatching

#: Where the inner lr of networks that start anew is read off.
AT_THE_FIRST = Position(along=-1.0)


def subset_rows(classes: Int[Tensor, " n"], count: int) -> list[Int[Tensor, " rows"]]:
    """The rows of each subset: an equal part of every class, in the order of the set. Fewer than `count` of them where
    a class has fewer images.
    """
    by_class = [class_rows(classes, int(label)) for label in torch.unique(classes)]
    count = min(count, *map(len, by_class))
    parts = [torch.tensor_split(rows, count) for rows in by_class]
    return [torch.cat([part[number] for part in parts]).sort().values for number in range(count)]


class ContinuedExperts:
    """Experts whose first snapshot has learned the earlier subsets already; trained here and now.

    Each starts from its own first weights, trains on what came before (together: on all of it; in-sequence: on the
    first subset, then on the first two, and so on, each at the inner lr that was learned with it), then on real images.
    """

    def __init__(self, at: Workplace, source: TrajectorySource, subsets: list[Tensor], lrs: list[float]) -> None:
        config = at.problem.config
        rounds = range(len(subsets)) if config.subsets.continued == "in-sequence" else [len(subsets) - 1]
        trainer, self._vectors = ExpertTrainer(at.problem), []
        for expert in range(min(config.subsets.experts, source.num_experts)):
            theta = at.problem.parameters(source.vector(expert, 0))
            for last in rounds:
                rows, seeds = torch.cat(subsets[: last + 1]), Seeds(config.seed)
                draw = seeds.stream("training on subsets", len(subsets), expert, last)
                theta = self._trained(at, theta, rows, lrs[last], draw)
            continued = trainer.continued(theta, len(subsets), expert)
            self._vectors.append(list(islice(continued, last_snapshot(config) + 1)))

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return len(self._vectors)

    def vector(self, expert: int, snapshot: int) -> Vector:
        """The expert's parameters at that snapshot."""
        return self._vectors[expert][snapshot]

    @staticmethod
    def _trained(at: Workplace, theta: Tensor, rows: Tensor, lr: float, draw: torch.Generator) -> Tensor:
        now, config = at.learner.synthetic, at.problem.config
        steps = config.subsets.train_steps
        batches = inner_batches(len(rows), config.student.batch_size, steps, at.ops, draw)
        return roll_out(at.network, theta, now.images[rows], now.labels()[rows], lr, batches)


def last_snapshot(config: DistillConfig) -> int:
    """The last one that a random segment can end at; a straight line is drawn to the last of all."""
    latest = config.schedule.start_max
    if latest is None or config.schedule.path == "straight":
        return config.experts.snapshots
    return latest + config.schedule.length


class StagedMatching:
    """A `Matcher` that learns one subset after another: students see all subsets so far, the latest alone moves."""

    def __init__(self, at: Workplace, trajectories: TrajectorySource, validate: Callable[[float], float]) -> None:
        self._at, self._source, self._validate = at, trajectories, validate
        self.subsets = subset_rows(at.learner.synthetic.classes, at.problem.config.subsets.count)
        #: Inner lr that was learned with each finished subset.
        self.lrs: list[float] = []
        self.matching = self._stage()

    @property
    def moving(self) -> Int[Tensor, " rows"]:
        """Rows of the subset that is being learned."""
        return self.subsets[len(self.lrs)]

    def begin(self, hits: Callable[[], Tensor]) -> None:
        """Of the first subset."""
        self.matching.begin(hits)

    def prepare(self, outer_step: int, spent: float) -> None:
        """Goes on to the next subset where this one has had its share of the run, or the steps that settings give."""
        each, last = self._at.problem.config.subsets.steps, len(self.subsets) - 1
        due = int(spent * len(self.subsets)) if each is None else outer_step // each
        if len(self.lrs) < min(last, due):
            now: Synthetic = self._at.learner.synthetic
            self.lrs.append(float(now.log_lr_at(AT_THE_FIRST).exp()))
            self.matching = self._stage()
            self.matching.begin(_no_head_start)
        self.matching.prepare(outer_step, spent)

    def update(self, outer_step: int) -> Row:
        """Matches with all subsets so far, and moves the latest."""
        return self.matching.update(outer_step)

    @property
    def passes(self) -> float:
        """Of the first stage's students, in whatever stage it is asked: a run that goes on must be paced as before."""
        return self.matching.passes_of(len(self.subsets[0]))

    @property
    def unfinished(self) -> bool:
        """Never: what is not learned yet are the images that the set began as."""
        return False

    @property
    def cycles(self) -> list[CycleRow]:
        """Overlap is not mitigated here."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Which subset is being learned, and where its matching stands; its experts are trained again."""
        return {"lrs": list(self.lrs), "matching": self.matching.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state; the learner must be there already, as its finished subsets make the experts."""
        self.lrs = list(state["lrs"])
        self.matching = self._stage()
        self.matching.load_state_dict(state["matching"])

    def _stage(self) -> TrajectoryMatching:
        number = len(self.lrs)
        trajectories = self._source
        if number:
            trajectories = ContinuedExperts(self._at, self._source, self.subsets[:number], self.lrs)
        rows = torch.cat(self.subsets[: number + 1])
        return TrajectoryMatching(self._at, trajectories, self._validate, rows=rows, moving=self.moving)


def _no_head_start() -> Tensor:
    raise AssertionError("random segments have no head start")
