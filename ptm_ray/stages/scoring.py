"""Scoring sets: some networks at a time, as evaluator actors do it, and the validation that a distillation asks for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ptm_ray.core.params import Network
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.sgd import Sgd
from ptm_ray.core.synthetic import Synthetic, balanced_rows
from ptm_ray.core.types import Float, Tensor
from ptm_ray.errors import NotEnoughImages
from ptm_ray.evaluation.metrics import hits
from ptm_ray.evaluation.protocol import Job, TrainingSet, streams, train_and_predict
from ptm_ray.evaluation.train import Training, TrainRecipe, predict, trainer
from ptm_ray.stages.problem import Problem


class Evaluator:
    """Holds the real images that it needs, once; trains and scores networks on whatever set it is given."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        self._trainers: dict[tuple[str, TrainRecipe], tuple[Network, Sgd]] = {}

    def _real(self, part: str) -> tuple[Tensor, Tensor]:
        if part not in self._held:
            self._held[part] = self.problem.tensors(part)
        return self._held[part]

    def one_hot(self, labels: Tensor) -> Tensor:
        """Labels as probabilities."""
        return torch.nn.functional.one_hot(labels, self.problem.dataset.num_classes).float()

    def random_set(self, ipc: int, draw: int) -> TrainingSet:
        """Random real images of equal number; with replacement only where a class has too few."""
        images, labels = self._real("train")
        names = self.problem.dataset.class_names
        # Seeded by the draw alone: every method at every distillation seed is compared with the same images.
        stream = Seeds(0).stream("random baseline", draw)
        try:
            rows = balanced_rows(labels, ipc, names, stream)
        except NotEnoughImages:
            stream = Seeds(0).stream("random baseline", draw)
            rows = balanced_rows(labels, ipc, names, stream, replacement=True)
        return images[rows], self.one_hot(labels[rows])

    def full_set(self) -> TrainingSet:
        """All training images."""
        images, labels = self._real("train")
        return images, self.one_hot(labels)

    def training_set(self, job: Job, synthetic: TrainingSet | None, ipc: int) -> TrainingSet:
        """What the job trains on."""
        if job.kind == "random":
            return self.random_set(ipc, job.draw)
        if job.kind == "full":
            return self.full_set()
        if synthetic is None:
            raise ValueError("a synthetic job needs a synthetic set")
        return synthetic

    def train(
        self, job: Job, synthetic: TrainingSet | None, ipc: int, begun: Training | None = None, share: float = 1.0
    ) -> Training:
        """The job's networks, fresh ones or those that were begun, after that share of all their steps, or the rest."""
        recipe = self._recipe_of(job)
        images, labels = self.training_set(job, synthetic, ipc)
        network, sgd = self._trainer(job.network, recipe)
        training = begun or Training.begin(network, len(images), recipe, streams(job.seeds), images.device)
        training.advance(sgd, images, labels, math.ceil(share * recipe.steps))
        return training

    def predict(
        self,
        job: Job,
        synthetic: TrainingSet | None,
        ipc: int,
        images: Tensor | None = None,
        begun: Training | None = None,
    ) -> list[Float[Tensor, "n classes"]]:
        """Class probabilities of the job's networks for normalised images, by default those of the test split.

        `begun`: the networks are on their way already.
        """
        images = self._real("test")[0] if images is None else images
        trained = self.train(job, synthetic, ipc, begun).networks
        network, _ = self._trainer(job.network, self._recipe_of(job))
        return [predict(network, one, images) for one in trained]

    def _recipe_of(self, job: Job) -> TrainRecipe:
        settings = self.problem.config.evaluation
        return self.recipe(settings.full_steps if job.kind == "full" else settings.steps)

    def test(
        self, network: str, train_on: Sequence[TrainingSet], recipe: TrainRecipe, seeds: Sequence[int]
    ) -> list[Float[Tensor, "n classes"]]:
        """Class probabilities for the test split, of a fresh network of this architecture for each seed, trained on
        these one after another.
        """
        return self._predictions(network, train_on, self._real("test")[0], recipe, seeds)

    def _predictions(
        self, name: str, train_on: Sequence[TrainingSet], images: Tensor, recipe: TrainRecipe, seeds: Sequence[int]
    ) -> list[Tensor]:
        network, sgd = self._trainer(name, recipe)
        return train_and_predict(network, train_on, images, recipe, seeds, sgd)

    def _trainer(self, name: str, recipe: TrainRecipe) -> tuple[Network, Sgd]:
        """A network of this architecture and what trains it, made once."""
        kind = name, replace(recipe, steps=0, ops=())
        if kind not in self._trainers:
            network = self.problem.network(name)
            self._trainers[kind] = network, trainer(network, recipe, torch.device(self.problem.device))
        return self._trainers[kind]

    def validate(self, synthetic: TrainingSet) -> Float[Tensor, " n"]:
        """For each image of the validation split, the share of a few matching networks that know its class.

        Their seeds differ from those of the final evaluation, which so stays independent of what was chosen here.
        """
        settings, (images, labels) = self.problem.config.evaluation, self._real("val")
        recipe = self.recipe(settings.validation_steps)
        seeds = [10_000 + k for k in range(settings.validation_networks)]
        found = self._predictions("convnet", [synthetic], images, recipe, seeds)
        return torch.stack([hits(shares, labels) for shares in found]).mean(0)

    def recipe(self, steps: int) -> TrainRecipe:
        """How every set is trained on, for so many steps."""
        settings = self.problem.config.evaluation
        return TrainRecipe(
            steps=steps,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            ops=self.problem.ops if self.problem.config.images.augment else (),
        )


class Scorer(Protocol):
    """Tries candidates on the validation split, now or later: `submit` then `collect`.

    What comes back with a candidate's tag is, for each image, the share of networks that know its class.
    """

    def submit(self, tag: int, candidate: Synthetic) -> None: ...

    def collect(self, wait: bool) -> list[tuple[int, Tensor]]: ...


class InlineScorer:
    """Scores in the calling process, at once."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._scored: list[tuple[int, Tensor]] = []

    def submit(self, tag: int, candidate: Synthetic) -> None:
        """Tries the candidate; `collect` hands out what was found."""
        self._scored.append((tag, self._evaluator.validate((candidate.images, candidate.labels()))))

    def collect(self, wait: bool) -> list[tuple[int, Tensor]]:
        """All since the last call."""
        scored, self._scored = self._scored, []
        return scored
