"""What a run is known by, and what it leaves: the set with its recipe, scores, cost and course."""

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from ptm_ray import __version__
from ptm_ray.config import DistillConfig
from ptm_ray.core.nets.convnet import default_depth
from ptm_ray.data import MedicalDataset
from ptm_ray.data.load import is_known
from ptm_ray.orchestrate.evaluators import Scores
from ptm_ray.stages.finished import Finished
from ptm_ray.stages.problem import Problem
from ptm_ray.store.artefact import SyntheticSet


@dataclass(frozen=True)
class DistillResult:
    """Where the set lies (a path, or a URL), how it scores beside random real images and full data, what it cost."""

    set: Path | str
    scores: dict[str, Any]
    cost: dict[str, float]

    @property
    def curve(self) -> str:
        """Where the picture of the run lies: loss, validation, end and overlap over outer steps."""
        return self._beside_the_set("curve.png")

    @property
    def page(self) -> str:
        """Where the page for a browser lies: card, images, course and cost of the run."""
        return self._beside_the_set("report.html")

    def _beside_the_set(self, name: str) -> str:
        return f"{str(self.set).removesuffix('set')}{name}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: the last line of `ptm-ray distill --json`."""
        return {"set": str(self.set), "scores": self.scores, "cost": self.cost}


def run_identity(config: DistillConfig, dataset: MedicalDataset) -> dict[str, Any]:
    """What makes a run this one: two calls that agree in it go on with each other's folder."""
    return {"config": _shareable(config, dataset), "dataset": dataset.fingerprint}


def _shareable(config: DistillConfig, dataset: MedicalDataset) -> dict[str, Any]:
    return config.replace(data=shared_name(config, dataset)).model_dump(mode="json")


def shared_name(config: DistillConfig, dataset: MedicalDataset) -> str:
    """What a run or sweep tells of where its images are: the dataset's name for its path.

    That is nobody else's business, and the same images may lie elsewhere; a flag finds them again.
    """
    return config.data if is_known(config.data) else dataset.name


def cost_of(problem: Problem, found: Finished, params: int, experts_s: float, evaluation_s: float) -> dict[str, float]:
    """Seconds, steps and bytes; `params` of the network, float32."""
    count, snapshots = problem.config.num_experts, problem.experts.snapshots + 1
    return {
        "experts_s": experts_s,
        "distillation_s": found.elapsed_s,
        # Of all calls that the run took, as its parts are, but for the starts of Ray.
        "total_s": experts_s + found.elapsed_s + evaluation_s,
        "outer_steps": len(found.rows),
        "skipped_updates": sum(row.skipped for row in found.rows),
        "peak_memory_bytes": found.peak_memory_bytes,
        "buffer_bytes": count * snapshots * params * 4,
        "experts": count,
    }


def history(found: Finished, scores: Scores, by_network: dict[str, Scores], cost: dict[str, float]) -> dict[str, Any]:
    """What `result.json` holds: scores, cost, and all that happened."""
    return {
        "scores": scores,
        "by_network": by_network,
        "cost": cost,
        "rows": [asdict(row) for row in found.rows],
        "cycles": [asdict(row) for row in found.cycles],
        "validation": [{"outer_step": step, "balanced_accuracy": score} for step, score in found.validation],
        "kept_outer_step": found.kept_step,
    }


def synthetic_set(problem: Problem, found: Finished, cost: dict[str, float]) -> SyntheticSet:
    """The artefact of a finished distillation, its recipe included."""
    data, config = problem.dataset, problem.config
    images = found.images.astype(np.float32)
    network = config.network.model_dump(mode="json")
    network["depth"] = network["depth"] or default_depth(data.resolution)
    recipe = {
        "shape": list(images.shape[1:]),
        "ipc": config.ipc,
        "soft_labels": found.soft,
        # Nobody has learned the one that a set begins with.
        "inner_lr": found.inner_lr if config.learns_inner_lr and found.kept_step else None,
        "normalisation": {
            "mean": problem.whitening.mean.tolist(),
            "std": problem.whitening.std.tolist(),
            "zca": problem.experts.zca,
        },
        "augmentation": list(problem.ops) if config.images.augment else [],
        "network": {"name": "convnet", **network},
        "initialisation": config.images.init,
        "seed": config.seed,
        "validation_balanced_accuracy": found.kept_score,
        "outer_step": found.kept_step,
        "cost": cost,
        "dataset": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "task": data.task,
            "licence": data.licence,
            "source": data.source,
            "notes": list(data.notes),
        },
        "config": _shareable(config, data),
        "versions": {
            "ptm-ray": __version__,
            "torch": torch.__version__,
            "ray": ray.__version__,
            "python": platform.python_version(),
        },
    }
    labels = found.classes.astype(np.int64)
    soft = found.labels.astype(np.float32) if found.soft else None
    whole = problem.whitening.zca
    zca = None if whole is None else whole.stored.numpy()
    return SyntheticSet(images, problem.pixels(torch.tensor(images)), labels, soft, recipe, zca)
