"""What an evaluation does: which sets, networks and seeds, and how the scores of many become one row."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ptm_ray.core.params import Network
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.sgd import Sgd
from ptm_ray.core.types import Float, Tensor
from ptm_ray.evaluation.train import TrainRecipe, predict, train

#: Images (n, channels, height, width), normalised, and label probabilities (n, classes).
TrainingSet = tuple[Tensor, Tensor]
Kind = Literal["synthetic", "random", "full"]


@dataclass(frozen=True)
class Job:
    """Networks to train and score: on which set (`draw` counts random draws), which architecture, one for each seed."""

    kind: Kind
    draw: int
    network: str
    seeds: tuple[int, ...]


def jobs(kinds: Iterable[Kind], networks: Sequence[str], seeds: int, random_draws: int, together: int = 1) -> list[Job]:
    """Every network of an evaluation, up to `together` in a job. Random real images are drawn anew for every draw."""
    draws = {"synthetic": 1, "random": random_draws, "full": 1}
    parts = [tuple(range(first, min(first + together, seeds))) for first in range(0, seeds, together)]
    return [
        Job(kind, draw, network, part)
        for kind in kinds
        for network in networks
        for draw in range(draws[kind])
        for part in parts
    ]


def streams(seeds: Sequence[int]) -> list[torch.Generator]:
    """What evaluation networks of these seeds are drawn from: first parameters, then batches."""
    return [Seeds(seed).stream("evaluation network") for seed in seeds]


def train_and_predict(
    network: Network,
    train_on: Sequence[TrainingSet],
    images: Float[Tensor, "m channels height width"],
    recipe: TrainRecipe,
    seeds: Sequence[int],
    sgd: Sgd | None = None,
) -> list[Float[Tensor, "m classes"]]:
    """Trains a fresh network for each seed and returns their class probabilities.

    On one set, or on several, one after another, each for its part of the recipe's steps. `sgd` is as in `train`.
    """
    generators, trained = streams(seeds), None
    part = replace(recipe, steps=recipe.steps // len(train_on))
    for images_and_labels in train_on:
        trained = train(network, *images_and_labels, part, generators, trained, sgd)
    assert trained is not None
    return [predict(network, one, images) for one in trained]


def repetitions(results: Sequence[tuple[Job, dict[str, float]]]) -> list[dict[str, float]]:
    """One row of metrics for each draw of one kind's sets, or for each seed where there is one draw: the mean over all
    networks that share it.

    Networks trained on one draw share its images, and those of one seed stand in for the same repetition, so that
    neither are rows of their own. `results` has a job of a single seed for every network.
    """
    drawn = len({job.draw for job, _ in results}) > 1
    sharing: dict[int, list[dict[str, float]]] = {}
    for job, metrics in results:
        sharing.setdefault(job.draw if drawn else job.seeds[0], []).append(metrics)
    return [{name: statistics.fmean(row[name] for row in rows) for name in rows[0]} for rows in sharing.values()]


def summarise(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float | int]]:
    """Metric → mean, standard deviation, 95 % interval of the mean (Student's t) and number of rows."""
    return {name: summary([row[name] for row in rows]) for name in rows[0]}


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """The same for one metric; a single value has no interval and 0 as its deviation."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "std": 0.0, "n": n}
    # Here and not above: scipy takes a second to load, and workers don't summarise.
    from scipy.stats import t

    std = statistics.stdev(values)
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half, "n": n}
