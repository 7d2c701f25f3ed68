"""Audits on Ray: a run is made again with canaries among its images, and what comes of it is asked which were there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ptm_ray.config import DistillConfig
from ptm_ray.data import MedicalDataset
from ptm_ray.errors import DataError, StoreError
from ptm_ray.evaluation import privacy
from ptm_ray.evaluation.protocol import Kind, jobs
from ptm_ray.orchestrate import evaluators
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.distill import distill
from ptm_ray.orchestrate.outcome import run_identity
from ptm_ray.orchestrate.session import connected, count_workers
from ptm_ray.orchestrate.watcher import Nobody, Watcher
from ptm_ray.orchestrate.workers import Arrays
from ptm_ray.stages.canaries import Canaries, with_canaries
from ptm_ray.stages.problem import Problem
from ptm_ray.store.artefact import SyntheticSet
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

#: Class probabilities of each canary by some networks: (networks, n, classes).
Shares = np.ndarray
#: Networks that an attack asks: the more of them, the less of its scores is chance.
NETWORKS: dict[Kind, int] = {"synthetic": 12, "full": 4}


@dataclass(frozen=True)
class AuditResult:
    """Where the report lies (a path, or a URL), and what was found."""

    report: Path | str
    findings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the last line of `ptm-ray audit --json`."""
        return {"report": str(self.report), **self.findings}


def audit(
    run: Place,
    dataset: MedicalDataset,
    *,
    canaries: int | None = None,
    seed: int = 0,
    experts_root: Place,
    workers: int | None = None,
    gpus: float = 0.0,
    watcher: Watcher | None = None,
) -> AuditResult:
    """Audits how a finished run was made; writes a report into its folder and what was found onto its set's card.

    What is audited is the way: the run's settings and as many outer steps, on its images but for the canaries, whose
    experts are trained anew. An audit that was stopped goes on. Raises `PtmError` of some kind for a folder without a
    finished run, another dataset and bad numbers of canaries, all before any expert trains.
    """
    watcher, folder, place = watcher or Nobody(), RunFolder(run), run / "audit"
    identity, result = folder.finished()
    if dataset.fingerprint != identity["dataset"]:
        raise DataError(f"{dataset.name} is not the dataset that {run} was made from; pass that one with --data")
    made = DistillConfig.of(identity["config"])
    planted = with_canaries(dataset, canaries, seed, made.ipc)
    # Its own accuracy is enough: what random real images and full data reach is known from the run.
    config = made.replace(outer_steps=result["cost"]["outer_steps"], evaluation={"compare_with": ()})
    audited, without = (Problem(part, config).check() for part in (planted.audited, planted.without))
    if RunFolder(place).holds_another(run_identity(config, planted.audited)):
        raise StoreError(f"{place} holds an audit with other canaries, or of another state of the run; remove it first")
    with connected(workers):
        there = count_workers(workers, gpus)
        again = distill(
            config, planted.audited, place, experts_root=experts_root, workers=there, gpus=gpus, watcher=watcher
        )
        theirs = SyntheticSet.load(place / "set")
        arrays = (theirs.images, theirs.probabilities)
        shares = _predicted(audited, ("synthetic", "full"), arrays, planted, there, gpus, watcher)
        usual = _predicted(without, ("full",), None, planted, there, gpus, watcher)["full"]
    findings = {
        "canaries": len(planted),
        "members": int(planted.members.sum()),
        "seed": seed,
        "outer_steps": config.outer_steps,
        "attacks": _attacks(planted, theirs, shares, usual),
        "copies": _copies(SyntheticSet.load(folder.set_place), dataset),
        "balanced_accuracy": {"run": _score(result["scores"]), "audited": _score(again.scores)},
    }
    # Pictures take a third of a second to import, which bad input need not wait for.
    from ptm_ray.report.run import write_audit

    return AuditResult(write_audit(folder, result, findings), findings)


def _predicted(
    problem: Problem,
    kinds: Sequence[Kind],
    synthetic: Arrays | None,
    planted: Canaries,
    workers: int,
    gpus: float,
    watcher: Watcher,
) -> dict[Kind, Shares]:
    """Class probabilities of the canaries by networks that are trained on each kind of set."""
    # Those of a set are trained in seconds. A GPU trains them side by side.
    numbers = {kind: NETWORKS[kind] for kind in kinds}
    todo = [
        job
        for kind, number in numbers.items()
        for job in jobs((kind,), ("convnet",), number, random_draws=0, together=number if gpus else 1)
    ]

    def show(done: int, wanted: int) -> None:
        watcher.update("attacking", done, wanted, f"{done} of {wanted} networks")

    with Crew.start(ray.put(problem), min(workers, len(todo)), gpus) as crew:
        found = evaluators.predict(crew, todo, synthetic, problem.config.ipc, show, planted.images)
    return {
        kind: np.stack([shares for job in todo if job.kind == kind for shares in found[job]]).astype(np.float64)
        for kind in kinds
    }


def _attacks(
    planted: Canaries, theirs: SyntheticSet, shares: dict[Kind, Shares], usual: Shares
) -> list[dict[str, Any]]:
    """Every attack's success on either kind of canaries.

    Networks' confidence in a canary counts as far as that of networks which never saw any does not explain it: what is
    easy is known to all. Source of that: Watson et al. 2022 (2111.08440), who take the difference; own design: the
    residual, of either kind for itself.
    """
    easy = privacy.confidences(usual, planted.labels)
    groups = {"mislabelled": planted.mislabelled, "ordinary": ~planted.mislabelled}

    def beyond_easy(kind: Kind) -> np.ndarray:
        sure = privacy.confidences(shares[kind], planted.labels)
        for rows in groups.values():
            sure[rows] = privacy.beyond(sure[rows], easy[rows])
        return sure

    scores = {
        ("set", "networks"): beyond_easy("synthetic"),
        ("set", "nearest image"): privacy.nearness(planted.images, theirs.pixels),
        ("full data", "networks"): beyond_easy("full"),
    }
    return [
        {"on": on, "by": by, "of": name, **asdict(privacy.membership(score[rows], planted.members[rows]))}
        for (on, by), score in scores.items()
        for name, rows in groups.items()
    ]


def _copies(made: SyntheticSet, dataset: MedicalDataset) -> dict[str, int]:
    """How many images of the run's own set are copies of training images, and of the test split, which says how near
    is usual.
    """
    found = privacy.copies(made.pixels, dataset.train.images, dataset.test.images)
    seen = int(dataset.test.stand_in(dataset.train).sum())
    return {"images": len(made.labels), "copies": int(found.sum()), "test_images_in_train": seen}


def _score(scores: dict[str, Any]) -> float:
    return float(scores["synthetic"]["balanced_accuracy"]["mean"])
