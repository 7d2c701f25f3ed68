"""Matching classes: synthetic images of each class against a batch of real ones, under networks that need no expert.

Which networks, and what is compared, is what makes DC, DSA, DM and NCFM.
"""

import math
from typing import Any, Protocol

import torch

from ptm_ray.config.parts import MatchingSettings
from ptm_ray.core import augment
from ptm_ray.core.by_class import ImageGradients
from ptm_ray.core.characteristic import FREQUENCIES, Sampler, calibrate, match_characteristics
from ptm_ray.core.feature_matching import match_features
from ptm_ray.core.gradient_matching import match_gradients
from ptm_ray.core.synthetic import ANYWHERE, class_rows, inner_batches
from ptm_ray.core.trajectory import TrajectorySource
from ptm_ray.core.types import Tensor
from ptm_ray.core.unroll import Gradients, roll_out
from ptm_ray.stages.matching import Row, Workplace
from ptm_ray.stages.mitigation import CycleRow

#: What both sides of each class are seen through.
Draws = dict[int, augment.Draw]
#: Some real images of each class, normalised.
Real = dict[int, Tensor]
#: Passes through the network that an image costs: forward; forward and back; with second derivatives too.
FORWARD, TRAINED, TWICE = 1, 3, 9


class Comparison(Protocol):
    """What is compared under which network, and what that must remember between outer steps."""

    def gradients(self, outer_step: int, real: Real, draws: Draws) -> ImageGradients:
        """Of the learner's images."""
        ...

    def after(self, outer_step: int) -> None:
        """Whatever follows the update of the images."""
        ...

    def passes(self, synthetic: int, real: int) -> float:
        """Images through the network in an outer step, for so many images of each side."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Features:
    """DM: mean features, under a fresh network at every outer step."""

    def __init__(self, at: Workplace) -> None:
        self._at = at

    def gradients(self, outer_step: int, real: Real, draws: Draws) -> ImageGradients:
        """Of the learner's images."""
        at, now = self._at, self._at.learner.synthetic
        theta = at.fresh_parameters(outer_step)
        return match_features(at.network, theta, now.images, now.classes, real, draws)

    def after(self, outer_step: int) -> None:
        """Nothing follows."""

    def passes(self, synthetic: int, real: int) -> float:
        """Real images need no gradient."""
        return TRAINED * synthetic + FORWARD * real

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was."""


class ParameterGradients:
    """DC and DSA: gradients of a network that begins anew every few outer steps and in between trains on the set."""

    def __init__(self, at: Workplace, settings: MatchingSettings) -> None:
        self._at, self._settings = at, settings
        ipc = at.problem.config.ipc
        # Published: 1 update of images for each network at ipc 1, 10 at 10, 50 at 50; 50 and 10 steps of training in
        # between at ipc 10 and 50.
        self._network_steps = settings.network_steps or min(ipc, 50)
        self._train_steps = math.ceil(min(50, 500 / ipc)) if settings.train_steps is None else settings.train_steps
        self._theta: Tensor | None = None

    def gradients(self, outer_step: int, real: Real, draws: Draws) -> ImageGradients:
        """Of the learner's images."""
        at, now = self._at, self._at.learner.synthetic
        if self._theta is None or outer_step % self._network_steps == 0:
            self._theta = at.fresh_parameters(outer_step)
        return match_gradients(at.network, self._theta, now.images, now.classes, real, draws)

    def after(self, outer_step: int) -> None:
        """Trains the network on the set, unless the next outer step has a fresh one."""
        if (outer_step + 1) % self._network_steps == 0:
            return
        at, now, config = self._at, self._at.learner.synthetic, self._at.problem.config
        assert self._theta is not None
        draw = at.seeds.stream("inner batches", outer_step)
        # DC augments nowhere.
        ops = at.ops if self._settings.augment else ()
        batches = inner_batches(len(now.images), config.student.batch_size, self._train_steps, ops, draw)
        lr = self._settings.network_lr
        self._theta = roll_out(at.network, self._theta, now.images, now.labels(), lr, batches)

    def passes(self, synthetic: int, real: int) -> float:
        """Training in between included."""
        batch = min(synthetic, self._at.problem.config.student.batch_size)
        training = TRAINED * self._train_steps * batch * (1 - 1 / self._network_steps)
        return TWICE * synthetic + TRAINED * real + training

    def state_dict(self) -> dict[str, Any]:
        """The network that is being trained."""
        return {"theta": self._theta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        self._theta = state["theta"]


class Characteristics:
    """NCFM: characteristic functions of features, under networks somewhere between an expert's start and its end."""

    def __init__(self, at: Workplace, trajectories: TrajectorySource) -> None:
        self._at, self._trajectories = at, trajectories
        self._last = at.problem.experts.snapshots
        theta = self._vector(0, self._last)
        features = at.network.embed(theta, at.learner.synthetic.images[:1]).shape[1]
        self._sampler = Sampler(features, at.seeds.stream("frequency sampler"), device=at.problem.device)

    def gradients(self, outer_step: int, real: Real, draws: Draws) -> ImageGradients:
        """Of the learner's images; the sampler moves the other way."""
        at, now = self._at, self._at.learner.synthetic
        draw = at.seeds.stream("matching network", outer_step)
        expert = int(torch.randint(self._trajectories.num_experts, (), generator=draw))
        first, last = self._vector(expert, 0), self._vector(expert, self._last)
        theta = first.lerp(last, torch.rand((), generator=draw).to(first.device))
        frequencies = self._sampler.draw(FREQUENCIES, draw)
        found = match_characteristics(at.network, theta, now.images, now.classes, real, draws, frequencies)
        assert found.frequencies is not None
        self._sampler.ascend(frequencies, found.frequencies)
        known = calibrate(at.network, last, now.images, now.classes, draws)
        return found._replace(images=found.images + known.images)

    def after(self, outer_step: int) -> None:
        """Nothing follows."""

    def passes(self, synthetic: int, real: int) -> float:
        """Discrepancy and calibration."""
        return 2 * TRAINED * synthetic + TRAINED * real

    def state_dict(self) -> dict[str, Any]:
        """Of the sampler of frequencies."""
        return {"sampler": self._sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        self._sampler.load_state_dict(state["sampler"])

    def _vector(self, expert: int, snapshot: int) -> Tensor:
        return self._at.problem.parameters(self._trajectories.vector(expert, snapshot))


def make_comparison(at: Workplace, trajectories: TrajectorySource) -> Comparison:
    """What the settings ask for."""
    settings = at.problem.config.matching
    if settings.what == "features":
        return Features(at)
    if settings.what == "gradients":
        return ParameterGradients(at, settings)
    return Characteristics(at, trajectories)


class ClassMatching:
    """A `Matcher` that at every outer step compares each class's images with some real ones of it."""

    def __init__(self, at: Workplace, trajectories: TrajectorySource) -> None:
        self._at, self._comparison = at, make_comparison(at, trajectories)
        self._images, self._labels = at.problem.tensors("train")
        self._rows = {label: class_rows(self._labels, label) for label in range(at.problem.dataset.num_classes)}

    @property
    def unfinished(self) -> bool:
        """Never: every update leaves a whole set."""
        return False

    @property
    def cycles(self) -> list[CycleRow]:
        """Overlap is mitigated where trajectories are matched."""
        return []

    @property
    def passes(self) -> float:
        """Of both sides, over all classes."""
        batch = self._at.problem.config.matching.real_batch
        real = sum(min(batch, len(rows)) for rows in self._rows.values())
        return self._comparison.passes(len(self._at.learner.synthetic.images), real)

    def begin(self, hits: object) -> None:
        """There is nothing to find out first."""

    def prepare(self, outer_step: int, spent: float) -> None:
        """Draws real images and augmentation."""
        at, settings = self._at, self._at.problem.config.matching
        draw = at.seeds.stream("real images", outer_step)
        self._real = {}
        for label, rows in self._rows.items():
            drawn = rows[torch.randperm(len(rows), generator=draw)[: settings.real_batch]]
            self._real[label] = self._images[drawn]
        self._draws = augment.siamese(at.ops if settings.augment else (), self._rows, draw)

    def update(self, outer_step: int) -> Row:
        """Moves the images against the gradient of what is compared."""
        learner = self._at.learner
        now = learner.synthetic
        found = self._comparison.gradients(outer_step, self._real, self._draws)
        usable = bool(torch.isfinite(found.loss)) and bool(torch.isfinite(found.images).all())
        if usable:
            still = torch.zeros_like(now.log_lr)
            learner.update(Gradients(found.loss, found.images, torch.zeros_like(now.labels()), still), ANYWHERE)
            self._comparison.after(outer_step)
        return Row(
            outer_step=outer_step,
            start=0,
            end=0,
            student_steps=0,
            loss=float(found.loss),
            inner_lr=float(now.log_lr.exp()),
            skipped=not usable,
            diverged=not usable,
            phase="match",
            overlap=None,
        )

    def state_dict(self) -> dict[str, Any]:
        """What the comparison remembers."""
        return self._comparison.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        self._comparison.load_state_dict(state)
