"""The loop of a distillation in one process: match, validate, checkpoint, stop in time.

Every random draw comes from a seed stream named by the outer step, so a checkpoint needs no generator state, and a
run that was stopped and resumed gives the same images, bit for bit, as one that never was.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from ptm_ray.config import DistillConfig
from ptm_ray.core.distill import Learner, OuterRates
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Synthetic
from ptm_ray.core.trajectory import TrajectorySource
from ptm_ray.core.types import Tensor
from ptm_ray.errors import DivergedError
from ptm_ray.stages.class_matching import ClassMatching
from ptm_ray.stages.initial_set import initial_set
from ptm_ray.stages.matching import Matcher, NoMatching, Row, Workplace
from ptm_ray.stages.mitigation import CycleRow
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Scorer
from ptm_ray.stages.selection import Selection, validate_every
from ptm_ray.stages.staged_matching import StagedMatching
from ptm_ray.stages.team import Alone, Team, TeamScorer
from ptm_ray.stages.trajectory_matching import TrajectoryMatching
from ptm_ray.store.checkpoints import RunFolder

#: Seconds between two checkpoints.
CHECKPOINT_EVERY_S = 20.0
#: Seconds until the first one: what is stopped early is worth going on with too.
FIRST_CHECKPOINT_S = 2.0


def outer_rates(config: DistillConfig) -> OuterRates:
    """The step sizes that the settings ask for."""
    images = config.images
    return OuterRates(
        optimiser=images.optimiser,
        images=config.images_lr,
        inner_lr=images.inner_lr_lr,
        labels=images.label_lr,
        ema_decay=images.ema,
        explode_at=images.explode_at,
        by_segment=config.student.inner_lr_by_segment,
        skip_above=math.inf if images.skip_above is None else images.skip_above,
    )


class Distillation:
    """A distillation under way. `run` is the loop; everything it needs to go on is in `state_dict`.

    With a `team`, one of several in as many processes, each with a folder, that go on from the first one's checkpoint.
    """

    def __init__(
        self,
        problem: Problem,
        trajectories: TrajectorySource,
        scorer: Scorer,
        folder: RunFolder,
        team: Team | None = None,
    ) -> None:
        started, config = time.monotonic(), problem.config
        self.problem, self.folder, self.team = problem, folder, team or Alone(config.matchers)
        seeds = Seeds(config.seed)
        bounds = problem.whitening.bounds if config.images.in_range else None
        bounds = None if bounds is None else bounds.to(problem.device)
        self.learner = Learner(initial_set(problem, trajectories, seeds), outer_rates(config), bounds)
        self.checkpoint_every_s = CHECKPOINT_EVERY_S
        self.step = 0
        self.elapsed_s = 0.0
        self.selection = Selection(TeamScorer(scorer, self.team), problem.tensors("val")[1])
        self.rows: list[Row] = []
        self.diverged_in_a_row = 0
        ops = problem.ops if config.images.augment else ()
        network = problem.network(precision=config.student.precision)
        workplace = Workplace(problem, network, seeds, self.learner, ops, self.team)
        self.matcher = self._make_matcher(workplace, trajectories)
        saved = self.team.broadcast(folder.load_checkpoint(problem.device) if self.team.rank == 0 else None)
        if saved is not None:
            self.load_state_dict(saved)
            return
        # The initial set is a candidate too: a run never hands on anything that validation knows to be worse.
        self.selection.submit(0, self.learner.result())
        self._agree()
        self.matcher.begin(self._first_hits)
        self._pace()
        self.elapsed_s = time.monotonic() - started

    def _make_matcher(self, at: Workplace, trajectories: TrajectorySource) -> Matcher:
        config = self.problem.config
        if config.outer_steps == 0:
            return NoMatching()
        if config.matching.what != "trajectories":
            return ClassMatching(at, trajectories)
        kind = StagedMatching if config.subsets.count > 1 else TrajectoryMatching
        return kind(at, trajectories, self._validate_now)

    @property
    def cycles(self) -> Sequence[CycleRow]:
        """What overlap mitigation has done so far."""
        return self.matcher.cycles

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on, as tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "matcher": self.matcher.state_dict(),
            "selection": self.selection.state_dict(),
            "rows": [asdict(row) for row in self.rows],
            "diverged_in_a_row": self.diverged_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to where a checkpoint was made."""
        self.learner.load_state_dict(state["learner"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.matcher.load_state_dict(state["matcher"])
        self._pace()
        self.selection.load_state_dict(state["selection"])
        self.rows = [Row(**row) for row in state["rows"]]
        self.diverged_in_a_row = state["diverged_in_a_row"]

    def run(self, budget_s: float | None = None, stop_after: float | None = None) -> Iterator[Row]:
        """Yields a row after every outer step, until the settings' outer steps or the budget are spent.

        `budget_s` counts the run's own wall time, over resumptions. `stop_after` ends this call after so many outer
        steps. A checkpoint is written every few seconds and at the end.
        """
        saved = time.monotonic() - max(0.0, self.checkpoint_every_s - FIRST_CHECKPOINT_S)
        most = self.problem.config.most_steps(budget_s)
        until = most if stop_after is None else min(most, self.step + stop_after)
        while self.step < until:
            started = time.monotonic()
            spent, due = self.team.broadcast((self._spent(most, budget_s), started - saved > self.checkpoint_every_s))
            if spent >= 1:
                break
            if due:
                self.checkpoint()
                saved = started
            row = replace(self._one_step(spent), elapsed_s=self.elapsed_s)
            self.elapsed_s += time.monotonic() - started
            self.rows.append(row)
            yield row
        self.checkpoint()
        if stop_after is None and not self.matcher.unfinished and self.step > self.selection.latest:
            # After the checkpoint: a run that is resumed with more time must not remember where it once ended.
            self._validate_now()

    def _spent(self, most: float, budget_s: float | None) -> float:
        """The share of the run that is over: of its outer steps or its time, whichever is more."""
        in_time = 0.0 if budget_s is None else self.elapsed_s / budget_s if budget_s else 1.0
        return max(self.step / most, in_time)

    def result(self) -> Synthetic:
        """The set that `Selection` keeps."""
        kept, now = self.selection.kept, self.learner.synthetic
        if kept is None:
            return self.learner.result()
        return Synthetic(classes=now.classes.clone(), num_classes=now.num_classes, **kept.learned)

    def _one_step(self, spent: float) -> Row:
        step = self.step
        self.matcher.prepare(step, spent)
        if not self.matcher.unfinished and step - self.selection.latest >= self.validate_every:
            self.selection.submit(step, self.learner.result())
        self.selection.collect(wait=False)
        # What is scored after the update is the set of the next step.
        self.step += 1
        row = self.matcher.update(step)
        self._count_diverged(row)
        return row

    def _first_hits(self) -> Tensor:
        """How often networks trained on the initial set know each validation image."""
        self.selection.collect(wait=True)
        assert self.selection.kept is not None
        return self.selection.kept.hits

    def _pace(self) -> None:
        images = len(self.learner.synthetic.images)
        self.validate_every = validate_every(self.problem.config, images, self.matcher.passes)

    def _count_diverged(self, row: Row) -> None:
        self.diverged_in_a_row = self.diverged_in_a_row + 1 if row.diverged else 0
        most = self.problem.config.images.max_skipped
        if self.diverged_in_a_row <= most:
            return
        what = f"{most} updates in a row were skipped (matching loss {row.loss:.3g}"
        if self.problem.config.matching.what != "trajectories":
            raise DivergedError(f"{what}): they are not finite; lower images.lr")
        alpha = math.exp(float(self.learner.synthetic.log_lr))
        raise DivergedError(
            f"{what}, inner lr down to {alpha:.3g}): the student diverges on these experts; lower experts.lr or "
            "student.inner_lr, or take more snapshots"
        )

    def _validate_now(self, at_least: float = 0.0) -> float:
        """The validation score of the set as it is, waited for; below `at_least` it is not kept."""
        return self.selection.score_now(self.step, self.learner.result(), at_least)

    def as_it_is(self) -> Synthetic:
        """The set after the outer steps so far, whatever `Selection` says of it; in mid-cycle, what that keeps."""
        return self.result() if self.matcher.unfinished else self.learner.result()

    def checkpoint(self) -> None:
        """Writes all that the run needs to go on, once every candidate is scored."""
        self.selection.collect(wait=True)
        self._agree()
        self.folder.save_checkpoint(self.state_dict())

    def _agree(self) -> None:
        """All go on from the first one's set: machines of several kinds may round differently, and drift apart."""
        if self.team.size > 1:
            self.learner.load_state_dict(self.team.broadcast(self.learner.state_dict()))
