"""The worker actor: trains experts, distils and evaluates, one task at a time on one CPU.

One kind of actor with three roles rather than three kinds: a process that has loaded torch and holds the images serves
every stage, and a job pays its start-up once. What the roles do is in `stages`; here is only how they are reached.
Beside it the evaluator that trials of a sweep share, in a file that imports no Tune, which takes a second.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError

from ptm_ray.config import DistillConfig
from ptm_ray.config.models import SCORED_BY
from ptm_ray.core.synthetic import Synthetic
from ptm_ray.core.trajectory import Vector
from ptm_ray.data import MedicalDataset
from ptm_ray.evaluation.protocol import Job, TrainingSet
from ptm_ray.evaluation.train import Training
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.experts import ExpertTrainer, store_of
from ptm_ray.stages.finished import Finished
from ptm_ray.stages.matching import Row
from ptm_ray.stages.memory import keep_memory
from ptm_ray.stages.problem import Problem
from ptm_ray.stages.scoring import Evaluator, InlineScorer, Scorer
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

#: A set on its way between processes: images and label probabilities.
Arrays = tuple[np.ndarray, np.ndarray]
#: What is raised of an actor that is lost. One that Ray's memory monitor has ended is told apart by Ray, not by us:
#: whoever takes its work on may find more memory free.
LOST = (RayActorError, OutOfMemoryError)
#: Parts that an evaluation job can be divided into.
LEGS = 6


class Worker:
    """A worker's body: an ordinary class that a test calls without a cluster."""

    def __init__(self, problem: Problem, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        keep_memory()
        self._problem = problem.on(device)
        self._trainer: ExpertTrainer | None = None
        self._evaluator: Evaluator | None = None
        self._distillation: Distillation | None = None

    def process_id(self) -> int:
        """Answers once the worker has started."""
        return os.getpid()

    def train_experts(self, experts: Sequence[int], experts_root: Place) -> Iterator[Vector]:
        """Yields snapshots as they are made, each expert's in turn, and writes their files."""
        self._trainer = self._trainer or ExpertTrainer(self._problem)
        yield from self._trainer.train_into(store_of(self._problem, experts_root), experts)

    def train_a_leg(self, job: Job, synthetic: Arrays | None, ipc: int, begun: Training | None) -> Training:
        """Takes a job's evaluation networks on by one of the legs that its steps are divided into."""
        return self._evaluating().train(job, self._training_set(synthetic), ipc, begun, share=1 / LEGS)

    def predict(
        self, job: Job, synthetic: Arrays | None, ipc: int, pixels: np.ndarray | None, begun: Training | None = None
    ) -> list[np.ndarray]:
        """Trains a job's evaluation networks to their end; their class probabilities, (n, classes) each, for images of
        any kind or, without `pixels`, for those of the test split.
        """
        images = None if pixels is None else torch.tensor(self._problem.normalise(pixels)).to(self._problem.device)
        found = self._evaluating().predict(job, self._training_set(synthetic), ipc, images, begun)
        return [shares.cpu().numpy() for shares in found]

    def validate(self, synthetic: Arrays) -> np.ndarray:
        """Share of networks that know its class, for each image of the validation split."""
        return validate_here(self._evaluating(), synthetic)

    def distill(
        self, buffer: TrajectoryBuffer, evaluators: list[Any], folder: Place, budget_s: float | None
    ) -> Iterator[Row]:
        """Runs a distillation, yielding what happens as it happens."""
        ask = [evaluator.validate.remote for evaluator in evaluators]
        scorer: Scorer = RemoteScorer(ask, self.validate) if ask else InlineScorer(self._evaluating())
        self._distillation = Distillation(self._problem, buffer, scorer, RunFolder(folder))
        yield from self._distillation.run(budget_s)

    def finished(self) -> Finished:
        """The distillation's best set and history."""
        assert self._distillation is not None
        return Finished.of(self._distillation)

    def _training_set(self, synthetic: Arrays | None) -> TrainingSet | None:
        return None if synthetic is None else self._problem.training_set(*synthetic)

    def _evaluating(self) -> Evaluator:
        self._evaluator = self._evaluator or Evaluator(self._problem)
        return self._evaluator


class RemoteScorer:
    """Scores candidates in other processes while the distillation goes on.

    `ask`: one for each of those, which takes a set and returns the reference of its hits. What one was asked that is
    lost is asked of the others, and found by `alone`, in this process, where none is left.
    """

    #: Candidates that may wait at each worker. A distillation that outran its scorers would owe them, at the end, more
    #: time than its budget has; so it waits for them as it goes.
    QUEUE_LENGTH = 2

    def __init__(self, ask: Sequence[Callable[[Arrays], Any]], alone: Callable[[Arrays], np.ndarray]) -> None:
        self._ask, self._alone = list(ask), alone
        self._pending: dict[Any, tuple[int, Arrays, Callable[[Arrays], Any]]] = {}
        self._scored: list[tuple[int, torch.Tensor]] = []

    def submit(self, tag: int, candidate: Synthetic) -> None:
        """Hands a candidate to the workers in turn; waits while all of them have enough to do."""
        while len(self._pending) >= self.QUEUE_LENGTH * len(self._ask) > 0:
            self._take(num_returns=1, timeout=None)
        self._hand_out(tag, (candidate.images.cpu().numpy(), candidate.labels().cpu().numpy()))

    def _hand_out(self, tag: int, arrays: Arrays) -> None:
        if not self._ask:
            self._scored.append((tag, torch.tensor(self._alone(arrays))))
            return
        ask = self._ask[tag % len(self._ask)]
        self._pending[ask(arrays)] = (tag, arrays, ask)

    def collect(self, wait: bool) -> list[tuple[int, torch.Tensor]]:
        """What has arrived; all that was asked, where told to wait."""
        while self._pending:
            self._take(num_returns=len(self._pending), timeout=None if wait else 0)
            if not wait:
                break
        scored, self._scored = self._scored, []
        return scored

    def _take(self, num_returns: int, timeout: float | None) -> None:
        done, _ = ray.wait(list(self._pending), num_returns=num_returns, timeout=timeout)
        for ref in done:
            tag, arrays, ask = self._pending.pop(ref)
            try:
                self._scored.append((tag, torch.tensor(ray.get(ref))))
            except LOST:
                self._ask = [other for other in self._ask if other is not ask]
                self._hand_out(tag, arrays)


class SharedEvaluator:
    """Scores sets of any trial on the validation split; holds the images once for all trials that see them alike."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        keep_memory()
        self._dataset: MedicalDataset | None = None
        self._known: dict[str, Evaluator] = {}

    def ready(self) -> bool:
        """Answers once it has started."""
        return True

    def validate(self, dataset: list[Any], config: DistillConfig, synthetic: Arrays) -> np.ndarray:
        """Share of networks that know its class, for each image of the validation split.

        `dataset` holds a reference to it: given with every set, so that an evaluator that was restarted has it again.
        """
        # Trials that differ in anything else share what is held.
        seen = config.model_dump_json(include=SCORED_BY)
        if seen not in self._known:
            self._dataset = self._dataset or ray.get(dataset[0])
            self._known[seen] = Evaluator(Problem(self._dataset, config))
        return validate_here(self._known[seen], synthetic)


def validate_here(evaluator: Evaluator, synthetic: Arrays) -> np.ndarray:
    """Share of networks that know its class, for each image of the validation split."""
    return evaluator.validate(evaluator.problem.training_set(*synthetic)).cpu().numpy()


def start_workers(problem: Any, count: int, gpus: float = 0.0) -> list[Any]:
    """`count` worker actors on one CPU and that share of a GPU each. `problem` is a reference to it, so that images
    travel once a node.
    """
    actor = ray.remote(Worker).options(num_cpus=1, num_gpus=gpus)
    return [actor.remote(problem, device_with(gpus)) for _ in range(count)]


def device_with(gpus: float) -> str:
    """Where a process works that has this share of a GPU."""
    return "cuda" if gpus else "cpu"
