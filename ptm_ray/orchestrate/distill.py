"""The main job on Ray: experts, buffer, distillation, evaluation, set."""

import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from ptm_ray import __version__
from ptm_ray.config import DistillConfig
from ptm_ray.core.nets.convnet import default_depth
from ptm_ray.data import MedicalDataset
from ptm_ray.data.load import is_known
from ptm_ray.errors import ConfigError, WorkerFailed
from ptm_ray.evaluation.metrics import load_ahead, score
from ptm_ray.evaluation.protocol import Kind, jobs
from ptm_ray.orchestrate import evaluators
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.crew import TRIES, Crew, cause_of
from ptm_ray.orchestrate.experts import fill_buffer
from ptm_ray.orchestrate.session import connected, count_workers
from ptm_ray.orchestrate.workers import LOST
from ptm_ray.stages.matching import Row
from ptm_ray.stages.problem import Problem
from ptm_ray.store import atomic
from ptm_ray.store.artefact import SyntheticSet
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)

#: What a run's experts took, in its folder: a call that goes on with it finds them there.
COST = "cost.json"


class Watcher(Protocol):
    """Whoever wants to see progress: `done` of `total` in a stage, and a few words about now."""

    def update(self, stage: str, done: float, total: float, words: str = "") -> None:
        """Called whenever there is something new to show."""


class Nobody:
    """A watcher that looks away."""

    def update(self, stage: str, done: float, total: float, words: str = "") -> None:
        """Nothing is shown."""


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


def train_experts(
    config: DistillConfig,
    dataset: MedicalDataset,
    *,
    experts_root: Place,
    workers: int | None = None,
    gpus: float = 0.0,
    watcher: Watcher | None = None,
) -> Path | str:
    """Trains the experts that are missing and returns the folder that holds them all.

    `gpus`: the share of one that each worker has.
    """
    problem = Problem(dataset, config).check()
    with connected(workers):
        buffer = experts_alone(problem, experts_root, count_workers(workers, gpus), watcher or Nobody(), gpus)
    return buffer.store.place.shown


def distill(
    config: DistillConfig,
    dataset: MedicalDataset,
    out: Place,
    *,
    experts_root: Place,
    budget_s: float | None = None,
    workers: int | None = None,
    gpus: float = 0.0,
    watcher: Watcher | None = None,
) -> DistillResult:
    """Experts → buffer → progressive matching → set → scores, into `out`.

    An `out` that holds this very run is gone on with: finished stages are not done again. `budget_s` bounds the
    distillation's own wall time, after the experts; `gpus` is the share of one that each worker has. Raises `PtmError`
    of some kind for bad settings, images or folders, all before any expert trains.
    """
    watcher = watcher or Nobody()
    problem = Problem(dataset, config).check()
    folder, identity = RunFolder(out), run_identity(config, dataset)
    fresh = folder.place.is_empty()
    if not fresh:
        # What holds anything else is refused before Ray starts.
        folder.claim(identity)
    with connected(workers):
        there = count_workers(workers, gpus)
        if config.matchers > there and not gpus:
            raise ConfigError(f"{config.matchers} matchers want a CPU each, but there are {there}; lower matchers")
        if fresh:
            # Not before: what is refused above is mended by settings, which make it another run.
            folder.claim(identity)
        with Crew.start(ray.put(problem), there, gpus) as crew:
            buffer, experts_s = _experts(problem, crew, experts_root, folder, watcher)
            found = _distillation(config, crew, buffer, folder, budget_s, watcher)
            held = folder.load_result()
            if held is not None and held["cost"]["outer_steps"] == len(found["rows"]):
                # Nothing was added since the test split was read: it is not read again.
                return DistillResult(folder.set_place.shown, held["scores"], held["cost"])
            arrays = (found["images"], found["labels"])
            kinds: tuple[Kind, ...] = ("synthetic", *config.evaluation.compare_with)
            started = time.monotonic()
            results = _evaluation(problem, crew, arrays, kinds, watcher)
            evaluation_s = time.monotonic() - started
    # Pictures take a third of a second to import, which neither bad input nor a worker's start need wait for.
    from ptm_ray.report.run import write_report

    cost = {
        "experts_s": experts_s,
        "distillation_s": found["elapsed_s"],
        # Of all calls that the run took, as its parts are, but for the starts of Ray.
        "total_s": experts_s + found["elapsed_s"] + evaluation_s,
        "outer_steps": len(found["rows"]),
        "skipped_updates": sum(row.skipped for row in found["rows"]),
        "peak_memory_bytes": found["peak_memory_bytes"],
        "buffer_bytes": problem.experts.count * (problem.experts.snapshots + 1) * buffer.store.params * 4,
        "experts": problem.experts.count,
    }
    scores = evaluators.by_kind(results)
    made = synthetic_set(problem, found, cost)
    made.save(folder.set_path)
    write_report(folder, made, _history(found, scores, evaluators.by_network(results), cost))
    folder.publish()
    return DistillResult(folder.set_place.shown, scores, cost)


def evaluate(
    problem: Problem,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    workers: int | None = None,
    gpus: float = 0.0,
    kinds: Sequence[Kind] = ("synthetic", "random", "full"),
    watcher: Watcher | None = None,
) -> tuple[evaluators.Scores, dict[str, evaluators.Scores]]:
    """Scores of a set, (n, channels, height, width) normalised and (n, classes) probabilities: overall, by network."""
    with connected(workers), Crew.start(ray.put(problem), count_workers(workers, gpus), gpus) as crew:
        results = _evaluation(problem, crew, (images, labels), kinds, watcher or Nobody())
    return evaluators.by_kind(results), evaluators.by_network(results)


def run_identity(config: DistillConfig, dataset: MedicalDataset) -> dict[str, Any]:
    """What makes a run this one: two calls that agree in it go on with each other's folder."""
    return {"config": _told(config, dataset), "dataset": dataset.fingerprint}


def _told(config: DistillConfig, dataset: MedicalDataset) -> dict[str, Any]:
    """The settings, with the dataset's name for its path.

    That is nobody else's business, and the same images may lie elsewhere; a flag finds them again.
    """
    name = config.data if is_known(config.data) else dataset.name
    return config.replace(data=name).model_dump(mode="json")


def _history(
    found: dict[str, Any], scores: evaluators.Scores, by_network: dict[str, evaluators.Scores], cost: dict[str, float]
) -> dict[str, Any]:
    """What `result.json` holds: scores, cost, and all that happened."""
    return {
        "scores": scores,
        "by_network": by_network,
        "cost": cost,
        "rows": [asdict(row) for row in found["rows"]],
        "cycles": [asdict(row) for row in found["cycles"]],
        "validation": [{"outer_step": step, "balanced_accuracy": score} for step, score in found["scores"]],
        "kept_outer_step": found["kept_step"],
    }


def experts_with_progress(
    problem: Problem, crew: Crew, root: Place, watcher: Watcher, recruits: int = 0
) -> TrajectoryBuffer:
    """`fill_buffer`, its progress shown to the watcher."""
    settings, epochs = problem.experts, problem.epochs()[-1]

    def show(done: int, wanted: int) -> None:
        trained = settings.count - (wanted - done) / settings.steps
        ran = f", {done / settings.steps * epochs:.0f} epochs" if wanted else ""
        watcher.update("experts", trained, settings.count, f"{int(trained)} of {settings.count} trained{ran}")

    return fill_buffer(problem, crew, root, show, recruits)


def experts_alone(problem: Problem, root: Place, workers: int, watcher: Watcher, gpus: float = 0.0) -> TrajectoryBuffer:
    """`experts_with_progress`, by workers that are there for it alone: none where no expert is missing."""
    with Crew(ray.put(problem), [], gpus) as crew:
        return experts_with_progress(problem, crew, root, watcher, workers)


def _experts(
    problem: Problem, crew: Crew, root: Place, folder: RunFolder, watcher: Watcher
) -> tuple[TrajectoryBuffer, float]:
    """`experts_with_progress`, and the seconds that it took in all calls of the run in `folder`."""
    folder.place.pull(COST)
    path = folder.root / COST
    before: float = json.loads(path.read_text())["experts_s"] if path.is_file() else 0.0
    started = time.monotonic()
    try:
        buffer = experts_with_progress(problem, crew, root, watcher)
    finally:
        # Where it was interrupted too: the experts that were finished are kept.
        seconds = before + time.monotonic() - started
        atomic.write_text(path, json.dumps({"experts_s": seconds}))
        folder.place.push(COST)
    return buffer, seconds


def _shown(watcher: Watcher, budget_s: float | None, most_steps: float) -> Callable[[Row], None]:
    """What shows the watcher an outer step."""
    total = budget_s or most_steps

    def show(row: Row) -> None:
        done = row.elapsed_s if budget_s else row.outer_step + 1
        words = f"step {row.outer_step}, end {row.end}, loss {row.loss:.3f}, {row.phase}"
        watcher.update("distilling", min(done, total), total, words)

    return show


def _distillation(
    config: DistillConfig,
    crew: Crew,
    buffer: TrajectoryBuffer,
    folder: RunFolder,
    budget_s: float | None,
    watcher: Watcher,
) -> dict[str, Any]:
    """The finished run, by as many members as match together."""
    show = _shown(watcher, budget_s, config.most_steps(budget_s))
    if config.matchers == 1 or crew.gpus:
        # On a GPU one worker matches for all, side by side.
        return _by_one(crew, buffer, folder, budget_s, show)
    # Train takes a second to import, which those who match alone need not wait for.
    from ptm_ray.orchestrate.together import distil_together

    # Those that match take the CPUs of as many workers; those that are left score. Where a node was lost, there may be
    # fewer CPUs than workers.
    wanting = max(0, len(crew.members) + len(crew.arriving) - count_workers(None))
    crew.dismiss(config.matchers + wanting)
    distil_together(crew.problem_ref, buffer, crew.members, folder, config.matchers, budget_s, show)
    crew.send_for(config.matchers)
    # What is left to do takes no outer step.
    return _by_one(crew, buffer, folder, 0.0, show)


def _by_one(
    crew: Crew, buffer: TrajectoryBuffer, folder: RunFolder, budget_s: float | None, show: Callable[[Row], None]
) -> dict[str, Any]:
    """By a member that the others score for; by another, from the last checkpoint, if it is lost.

    Gives up where that keeps happening at the same outer step.
    """
    losses, furthest = 0, -1
    while True:
        leader = crew.leader()
        helpers = [member for member in crew.members if member is not leader]
        where = folder.place.absolute()
        stream = leader.distill.options(num_returns="streaming").remote(buffer, helpers, where, budget_s)
        try:
            for ref in stream:
                row: Row = ray.get(ref)
                if row.outer_step > furthest:
                    losses, furthest = 0, row.outer_step
                show(row)
            found: dict[str, Any] = ray.get(leader.result.remote())
        except RayTaskError as error:
            raise cause_of(error, "distilling") from error
        except LOST as error:
            losses += 1
            if losses == TRIES:
                raise WorkerFailed(
                    f"the distilling worker died {TRIES} times ({error}); run the same command again to go on from its "
                    "last checkpoint"
                ) from error
            log.warning("the distilling worker died; another goes on from its last checkpoint")
            crew.lost(leader)
        else:
            return found


def _evaluation(
    problem: Problem,
    crew: Crew,
    synthetic: tuple[np.ndarray, np.ndarray],
    kinds: Sequence[Kind],
    watcher: Watcher,
) -> list[Any]:
    settings = problem.config.evaluation
    # A GPU trains all networks of a set side by side; on CPUs each is a job, so that none is idle while there are some.
    together = settings.seeds if crew.gpus else 1
    todo = jobs(kinds, settings.networks, settings.seeds, settings.random_draws, together)

    def show(done: int, total: int) -> None:
        watcher.update("evaluating", done, total, f"{done} of {total} networks")

    load_ahead()
    found = evaluators.predict(crew, todo, synthetic, problem.config.ipc, show)
    labels = torch.tensor(problem.dataset.test.labels)
    return [(job, score(torch.tensor(shares), labels)) for job in todo for shares in found[job]]


def synthetic_set(problem: Problem, found: dict[str, Any], cost: dict[str, float]) -> SyntheticSet:
    """The artefact of a finished distillation, its recipe included."""
    data, config = problem.dataset, problem.config
    images = found["images"].astype(np.float32)
    network = config.network.model_dump(mode="json")
    network["depth"] = network["depth"] or default_depth(data.resolution)
    recipe = {
        "shape": list(images.shape[1:]),
        "ipc": config.ipc,
        "soft_labels": found["soft"],
        # Nobody has learned the one that a set begins with.
        "inner_lr": found["inner_lr"] if config.learns_inner_lr and found["kept_step"] else None,
        "normalisation": {
            "mean": problem.whitening.mean.tolist(),
            "std": problem.whitening.std.tolist(),
            "zca": problem.experts.zca,
        },
        "augmentation": list(problem.ops) if config.images.augment else [],
        "network": {"name": "convnet", **network},
        "initialisation": config.images.init,
        "seed": config.seed,
        "validation_balanced_accuracy": found["kept_score"],
        "outer_step": found["kept_step"],
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
        "config": _told(config, data),
        "versions": {
            "ptm-ray": __version__,
            "torch": torch.__version__,
            "ray": ray.__version__,
            "python": platform.python_version(),
        },
    }
    labels = found["classes"].astype(np.int64)
    soft = found["labels"].astype(np.float32) if found["soft"] else None
    whole = problem.whitening.zca
    zca = None if whole is None else whole.stored.numpy()
    return SyntheticSet(images, problem.pixels(torch.tensor(images)), labels, soft, recipe, zca)
