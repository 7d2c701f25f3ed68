"""A run, whole: the settings of all its parts, what follows from them together, and what contradicts itself."""

import math
from typing import Any, Literal, Self

from pydantic import model_validator

from ptm_ray.config.base import Settings
from ptm_ray.config.parts import (
    Count,
    EvaluationSettings,
    ExpertSettings,
    ImageSettings,
    MatchingSettings,
    NetworkSettings,
    OverlapSettings,
    Positive,
    ScheduleSettings,
    StudentSettings,
    SubsetSettings,
)

#: Outer steps of a run that neither settings nor a time budget end.
OUTER_STEPS = 2000
#: All that scoring a set asks of the settings that it was made with, as pydantic's `include`.
SCORED_BY: Any = {"network": True, "evaluation": True, "mirror": True, "images": {"augment"}, "experts": {"zca"}}


class DistillConfig(Settings):
    """One distillation, whole: everything that decides what the synthetic set becomes."""

    data: str = "cellphantom"
    """Dataset: cellphantom, a MedMNIST 2D flag, or the path of an npz, a folder of class folders, or a table."""
    size: Positive | None = None
    """Pixels a side: which file of a MedMNIST set (by default 28), or what pictures of folders and tables are scaled to
    (by default 32). Arrays of an npz have their own."""
    mirror: bool | None = None
    """Whether augmentation may mirror images; by default unless left and right are known to differ (as in X-rays)."""
    ipc: int = 10
    """Synthetic images per class."""
    method: Literal[
        "ptm",
        "mtt",
        "datm",
        "mct",
        "tesla",
        "ftd",
        "seqmatch",
        "pdd",
        "hoptm",
        "dc",
        "dsa",
        "dm",
        "ncfm",
        "random",
        "random-natural",
        "herding",
        "k-center",
        "k-means",
    ] = "ptm"
    """ptm: progressive segments and overlap mitigation. mtt: random segments. datm: random segments from a range that
    widens, learned labels, images that experts know. mct: mtt on trajectories made straight. tesla: mtt with an
    approximate gradient. ftd: mtt with flat experts. seqmatch, pdd: mtt on one subset after another. hoptm: ftd, what
    is easy matched first, and the shape of the way beside its end. dc, dsa: matched gradients. dm: matched mean
    features. ncfm: matched characteristic functions. random, random-natural, herding, k-center, k-means: real images
    as they are. A preset; any setting can follow it."""
    seed: Count = 0
    """Seed of the distillation: first images, segments, batches, augmentation. Experts have their own, and what sets
    are scored by (evaluation networks, random real images to compare with) is the same for every seed."""
    outer_steps: Count | None = None
    """Most outer steps; by default 2000, or as many as there is time for where a time budget ends the run. 0: the first
    images are handed on as they are."""
    matchers: Positive = 1
    """Workers that match together, one expert each, and average their gradients at every outer step. On a GPU one
    worker does for all of them, side by side."""
    network: NetworkSettings = NetworkSettings()
    experts: ExpertSettings = ExpertSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    student: StudentSettings = StudentSettings()
    matching: MatchingSettings = MatchingSettings()
    subsets: SubsetSettings = SubsetSettings()
    images: ImageSettings = ImageSettings()
    overlap: OverlapSettings = OverlapSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ipc < 1:
            raise ValueError(f"ipc must be 1 or more, got {self.ipc}")
        if self.matchers > self.experts.count:
            raise ValueError(
                f"{self.matchers} matchers want an expert each, but there are {self.experts.count}; "
                "lower matchers or raise experts.count"
            )
        if self.subsets.count > 1:
            self._require_random_segments_alone()
        last = self.experts.snapshots
        ends = {"end_min": self.schedule.end_min, "end_max": self.schedule.end_max}
        if self.schedule.start is not None:
            ends["start + 1"] = self.schedule.start + 1
        if self.schedule.has_short_segments:
            for name in ("start_first", "start_max", "start_min"):
                ends[f"{name} + length"] = (getattr(self.schedule, name) or 0) + self.schedule.length
        if self.matching.what != "trajectories" and self.images.soft_labels:
            raise ValueError(
                f"matching.what {self.matching.what} compares class by class and can't learn labels; "
                "set images.soft_labels to false"
            )
        if self.matching.what != "trajectories" and self.matchers > 1:
            raise ValueError(
                f"{self.matchers} matchers match a trajectory each, but matching.what is {self.matching.what}; "
                "set matchers to 1"
            )
        if self.images.init == "noise" and self.images.label_init == "experts":
            raise ValueError("experts have no labels for noise; take --images.label-init one-hot, or real images")
        if self.images.init == "real-natural" and self.outer_steps != 0:
            raise ValueError(
                f"images.init real-natural may miss a class, so it is not learned from (outer_steps is "
                f"{self.most_steps(None)}); set outer_steps to 0, or images.init to real"
            )
        if self.matching.what != "trajectories" and (self.matching.easy_base or self.matching.shape_weight):
            raise ValueError(
                "matching.easy_base and matching.shape_weight compare students with experts, but matching.what is "
                f"{self.matching.what}; set both to 0, or matching.what to trajectories"
            )
        if self.matching.shape_weight:
            self._require_a_middle()
        for name, end in ends.items():
            if end is not None and end > last:
                raise ValueError(
                    f"schedule.{name} is snapshot {end}, but trajectories end at snapshot {last}; "
                    "lower it or raise experts.snapshots"
                )
        return self

    def _require_random_segments_alone(self) -> None:
        """What subsets are learned by."""
        wrong = {
            f"matching.what {self.matching.what}": self.matching.what != "trajectories",
            f"schedule.kind {self.schedule.kind}": self.schedule.progressive,
            "overlap.enabled": self.overlap.enabled,
            f"matchers {self.matchers}": self.matchers > 1,
        }
        for setting, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(
                    f"{self.subsets.count} subsets are learned by one worker from random segments, without overlap "
                    f"mitigation, but {setting} is set; start from --method seqmatch or pdd, or set subsets.count to 1"
                )

    def _require_a_middle(self) -> None:
        if self.student_steps_max < 2:
            raise ValueError(
                "matching.shape_weight looks at the student half way, but it takes one step; raise student.steps_max"
            )
        if self.schedule.length < 2 and self.schedule.has_short_segments:
            raise ValueError(
                "matching.shape_weight looks at experts half way, but segments are of length 1; raise schedule.length"
            )

    @property
    def num_experts(self) -> int:
        """Experts that a run looks at: none where it neither matches anything of theirs nor begins by them."""
        matches = self.outer_steps != 0 and self.matching.what in ("trajectories", "characteristics")
        return self.experts.count if matches or self.images.begin_by_experts else 0

    @property
    def end_max(self) -> int:
        """Last end snapshot."""
        return self.schedule.end_max or self.experts.snapshots

    def most_steps(self, budget_s: float | None) -> float:
        """Most outer steps of a run with this time budget."""
        if self.outer_steps is not None:
            return self.outer_steps
        return OUTER_STEPS if budget_s is None else math.inf

    @property
    def learns_inner_lr(self) -> bool:
        """Whether anything moves the inner lr: students that match trajectories do."""
        return self.matching.what == "trajectories" and self.outer_steps != 0

    @property
    def paced_by_run(self) -> bool:
        """Whether what is matched depends on how much of the run is over, not on its outer steps alone."""
        return (
            (self.subsets.count > 1 and self.subsets.steps is None)
            or (self.schedule.kind in ("count", "window") and self.schedule.growth is None)
            or (self.matching.easy_base > 0 and self.matching.easy_every is None)
        )

    def later_share(self, start: int) -> float:
        """Share of later segments among those of a schedule whose progressive ones begin at snapshot `start`."""
        if self.schedule.later_share is not None:
            return self.schedule.later_share
        return 0.7 + 0.3 * min(1.0, 5 * start / self.experts.snapshots)

    @property
    def images_lr(self) -> float:
        """Outer lr of the images."""
        return self.images.lr or (0.1 if self.images.init == "noise" else 0.1 / math.sqrt(self.ipc))

    @property
    def student_steps_max(self) -> int:
        """Most inner steps."""
        return self.student.steps_max or max(self.student.steps_min, round(20 / self.ipc ** (1 / 3)))
