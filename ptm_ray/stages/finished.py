"""What a distillation hands on once it is over, in plain values that any process can take."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.matching import Row
from ptm_ray.stages.memory import peak_memory
from ptm_ray.stages.mitigation import CycleRow


@dataclass(frozen=True)
class Finished:
    """The set that `Selection` keeps and how it came about."""

    #: (n, channels, height, width), normalised.
    images: np.ndarray
    #: (n,)
    classes: np.ndarray
    #: (n, classes), probabilities.
    labels: np.ndarray
    #: Whether the labels were learned.
    soft: bool
    #: By kind of segment.
    inner_lr: dict[str, float]
    rows: list[Row]
    cycles: list[CycleRow]
    #: Outer step and balanced accuracy of every candidate, on the validation split.
    validation: list[tuple[int, float]]
    #: Of the candidate that is kept, as its score is.
    kept_step: int
    kept_score: float | None
    elapsed_s: float
    peak_memory_bytes: int

    @classmethod
    def of(cls, run: Distillation) -> Self:
        """As it stands now."""
        made, kept = run.result(), run.selection.kept
        return cls(
            images=made.images.cpu().numpy(),
            classes=made.classes.cpu().numpy(),
            labels=made.labels().cpu().numpy(),
            soft=made.label_logits is not None,
            inner_lr=made.inner_lrs(),
            rows=run.rows,
            cycles=list(run.cycles),
            validation=run.selection.scores,
            kept_step=kept.outer_step if kept else run.step,
            kept_score=kept.score if kept else None,
            elapsed_s=run.elapsed_s,
            peak_memory_bytes=peak_memory(run.problem.device),
        )
