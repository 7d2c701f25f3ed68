"""Every setting of a run, part by part, with its default and the reason for it: the command line's help.

Where a default had to be measured, it was chosen on validation splits or on training images that were held out, over
datasets of different modality together.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ptm_ray.config.base import Settings

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

#: Shares of a run over which the range of starts widens (Guo et al. 2024: 1,000 of 10,000 outer steps), and over which
#: an end does that grows by count (own choice); and how often what counts as easy grows (HoP-TM: every 500 of 10,000).
WINDOW_GROWTH, COUNT_GROWTH, EASY_TIMES = 0.1, 0.5, 20
#: e to the power of this is still a number.
LARGEST_EXPONENT = 700.0


class NetworkSettings(Settings):
    """The matching network. Batch norm is missing on purpose: its running statistics are no parameters, so a student
    that matches the parameters would still behave differently."""

    width: Positive = 32
    """Feature maps (channels) of each convolution."""
    depth: Positive | None = None
    """Blocks; by default 3 up to 32 pixels and one more for every doubling."""
    norm: Literal["instance", "group", "none"] = "instance"
    """Normalisation of each block."""
    pooling: Literal["avg", "max"] = "avg"
    """Pooling of each block."""

    @model_validator(mode="before")
    @classmethod
    def _no_batch_norm(cls, values: dict[str, object]) -> dict[str, object]:
        if isinstance(values, dict) and values.get("norm") == "batch":
            raise ValueError(
                "batch norm can't be matched: its running statistics are no parameters, so the student's parameters "
                "would not say what it computes; use instance or group norm (batch norm can be evaluated: resnet18_bn)"
            )
        return values


class ExpertSettings(Settings):
    """The networks trained on real data whose trajectories are matched."""

    count: Positive = 8
    """How many experts; an outer step matches one of them, drawn at random, or one for each matcher."""
    steps: Positive = 400
    """Training steps of each."""
    snapshots: Positive = 20
    """Snapshots taken beside the initialisation."""
    spacing: Annotated[float, Field(ge=1, le=4)] = 1.0
    """1 spaces snapshots evenly; more makes them denser early, where a network moves most."""
    lr: Rate = 0.01
    """Step size."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """0, as in MTT: the student has none either."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty."""
    flat_radius: Annotated[float, Field(ge=0)] = 0.0
    """Radius, in units of each parameter, within which GSAM looks for the worst point, at twice the work: flat experts,
    as FTD has. 0 is plain SGD."""
    flat_gap: Annotated[float, Field(ge=0)] = 0.3
    """How strongly GSAM lessens the gap between here and there (its α)."""
    batch_size: Positive = 64
    """Images a step."""
    balanced: bool = True
    """Draw every class equally often, instead of as often as it occurs: rare classes are then learned from the start,
    where trajectories are matched first."""
    logit_adjustment: Annotated[float, Field(ge=0)] = 0.0
    """Adds so much times the logarithm of its share to each class's logit while training, so that the expert owes rare
    classes their recall in the other way; with natural sampling (`balanced` false). 1 is Fisher consistent for balanced
    accuracy."""
    augment: bool = True
    """Train with DSA."""
    zca: bool = False
    """Whiten images (ZCA) instead of standardising each channel; up to 64 pixels."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions, as `student.precision`."""
    seed: Count = 0
    """Seed of the experts, apart from the distillation's, so that many distillations share them."""

    @model_validator(mode="after")
    def _room_for_snapshots(self) -> Self:
        if self.snapshots > self.steps:
            raise ValueError(
                f"{self.snapshots} snapshots don't fit into {self.steps} steps; take fewer or train longer"
            )
        if self.logit_adjustment and self.balanced:
            raise ValueError(
                f"logit_adjustment {self.logit_adjustment:g} is for natural sampling, and balanced is set: both would "
                "favour rare classes twice; set experts.balanced to false, or logit_adjustment to 0"
            )
        return self


class ScheduleSettings(Settings):
    """Which segment of a trajectory is matched at each outer step."""

    kind: Literal["progress", "count", "random", "window"] = "progress"
    """progress: the end grows as the student learns. count: it grows with the outer steps. random: MTT, a short segment
    from a random start. window: DATM, the same, from a range of starts that widens with the outer steps."""
    start: Count | None = None
    """progress, count: fixed start snapshot; by default the last one whose experts surely score lower on validation
    than networks trained on the initial set: 0 from noise, later the more real images a set begins with."""
    end_min: Positive | None = None
    """progress, count: first end snapshot; by default half way from the start to the last."""
    end_max: Positive | None = None
    """progress, count: last end snapshot, where the end stays; by default the last that experts have."""
    threshold: Rate = 0.6
    """progress: the end moves on once the smoothed matching loss is below this."""
    patience: Positive = 15
    """progress: … or after this many outer steps at one end, later segments (`later_share`) left out."""
    growth: Positive | None = None
    """count: outer steps over which the end grows from `end_min` to `end_max`, by default half of the run's. window:
    over which the latest start does from `start_first` to `start_max`, by default a tenth, as published. Of its time,
    where the run has a time budget."""
    shape: Literal["linear", "cosine", "stepped"] = "linear"
    """count: how it grows."""
    later_share: Share | None = None
    """progress, count: share of outer steps that match a short segment from a random later start instead; by default
    0.7, and more for sets with a head start: all of them from a fifth of the trajectory on. 0, with `start` 0: all
    segments begin at the initialisation, as in the paper."""
    length: Positive = 2
    """Snapshots from start to end of a random or later segment."""
    path: Literal["trained", "straight"] = "trained"
    """straight: MCT, snapshots are moved onto the line from an expert's first to its last."""
    start_min: Count | None = None
    """Earliest start snapshot of a random or later segment; by default 0, or 1 where it is a later one."""
    start_max: Count | None = None
    """Latest start snapshot of a random or later segment; by default as late as the trajectory allows."""
    start_first: Count | None = None
    """window: latest start snapshot at the first outer step; by default half way to the latest of all."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_max is not None and self.end_min is not None and self.end_max < self.end_min:
            raise ValueError(f"end_max {self.end_max} lies before end_min {self.end_min}")
        first_end = self.end_min or self.end_max
        if self.start is not None and first_end is not None and first_end <= self.start:
            raise ValueError(f"start {self.start} does not lie before the first end, {first_end}")
        if self.start_max is not None and self.start_min is not None and self.start_max < self.start_min:
            raise ValueError(f"start_max {self.start_max} lies before start_min {self.start_min}")
        if self.start_first is not None and self.start_first < (self.start_min or 0):
            raise ValueError(f"start_first {self.start_first} lies before start_min {self.start_min}")
        if self.start_first is not None and self.start_max is not None and self.start_max < self.start_first:
            raise ValueError(f"start_max {self.start_max} lies before start_first {self.start_first}")
        return self

    def grown(self, outer_steps: int, spent: float) -> float:
        """How much of the growth is over after so many outer steps, with a share `spent` of the run; all of it at 1."""
        if self.growth is not None:
            return outer_steps / self.growth
        return spent / (WINDOW_GROWTH if self.kind == "window" else COUNT_GROWTH)

    @property
    def progressive(self) -> bool:
        """Whether segments have a fixed start and an end that grows."""
        return self.kind in ("progress", "count")

    @property
    def has_short_segments(self) -> bool:
        """Whether some segments are of `length` snapshots."""
        return not self.progressive or self.later_share != 0


class StudentSettings(Settings):
    """The student that trains on the synthetic set."""

    steps_per_snapshot: Rate = 1.0
    """Inner steps for each snapshot of the segment, so that longer segments get longer students, from `steps_min` to
    `steps_max`. By default these are the same from 7 images per class on, and so are all students."""
    steps_min: Positive = 10
    """Fewest inner steps."""
    steps_max: Positive | None = None
    """Most inner steps; by default 20 / ∛ipc, but never fewer than the fewest: a step through many images costs more
    and gets further, so the time is better spent on more outer steps."""
    batch_size: Positive = 32
    """Synthetic images an inner step; a set that is no larger is seen whole."""
    inner_lr: Rate | None = None
    """First inner lr, of random or later segments where there are any. By default it is searched among 2, 1, ½ … 1/16
    times what would cover the expert's way (its rate × its steps in the first segment, spread over the student's): the
    largest that brings the initial images' student about as close as any. Segments whose steps cover more or less take
    proportionally larger or smaller ones."""
    inner_lr_by_segment: bool = True
    """Learn how the inner lr depends on where a random or later segment begins, and another for progressive ones. MTT
    has one for all."""
    gradient: Literal["exact", "tesla"] = "exact"
    """Of the images. tesla: an approximation, as if the images of an inner step moved no later one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions in students. float32 on a GPU is torch's default there, TF32: see docs/speed.md. bfloat16 is less
    exact, faster where the processor has it, and many times as slow where it has not (`ptm-ray doctor` says)."""
    memory_mib: Count | None = None
    """Memory that a matching step may take, beyond what is there without it: graphs of inner steps are stored while
    they fit, and made again on the way back where they don't. The gradient is the same. By default 2048, and on a GPU
    half of what is free when the run starts."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.steps_max is not None and self.steps_max < self.steps_min:
            raise ValueError(f"steps_max {self.steps_max} is below steps_min {self.steps_min}")
        return self


#: First images that are real ones which a trained expert chooses.
CHOSEN_BY_EXPERTS = ("herding", "k-center", "k-means", "real-correct")


class ImageSettings(Settings):
    """The synthetic images, their labels and how they are updated."""

    init: Literal[
        "herding", "k-center", "k-means", "real", "real-correct", "real-natural", "real-resampled", "noise"
    ] = "herding"
    """herding: the training images that stand for their class best in an expert's features. k-center: there, those that
    leave none of the class far away. k-means: there, those nearest to centroids of the class. real: random ones.
    real-correct: random ones that an expert classifies correctly. real-natural: random ones of all, so that classes are
    as frequent as they are; only where outer_steps is 0. real-resampled: random with replacement, where a class has too
    few. All of these can be recognised in the result. noise: no image is touched."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """adam: scale-free, so one rate serves all datasets. sgd: MTT's, momentum 0.5; it needs a `lr` of its own, of 10 to
    1000."""
    lr: Rate | None = None
    """Outer lr of the images, in standard deviations of a pixel for adam; by default 0.1 / √ipc for real images: one
    among many has less to say in each step, and more of what it shows to keep. 0.1 for noise, which has nothing to
    keep (on held-out images of four training sets, ten images per class: better by 24, 8, 8 and -2 points)."""
    in_range: bool = True
    """Keep images between black and white, so that eight bits can hold what was learned (not under ZCA)."""
    inner_lr_lr: Rate = 0.05
    """Outer lr of the logarithm of the inner lr."""
    soft_labels: bool = False
    """Learn the labels too."""
    label_init: Literal["one-hot", "experts"] = "one-hot"
    """What learned labels begin as. experts: mean logits of the experts that classify the real image correctly."""
    label_lr: Rate = 0.01
    """Outer lr of the label logits."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Decay, each outer step, of a moving average of the images, which is then what is evaluated and kept; 0 is off.
    Less in the first hundreds of steps, so that a short run's average is over its last tenth. (On held-out parts of
    four training splits, against no average: PTM better by 0.7 points at ipc 1 and 10, MTT's segments by 0.3 and
    0.5.)"""
    augment: bool = True
    """Students and evaluation networks see the set through DSA."""
    explode_at: Rate = 5.0
    """A matching loss above this counts as exploded: the update is skipped and the inner lr halved."""
    skip_above: Rate | None = None
    """An update whose matching loss is above this is skipped, no more: DATM's gate. By default there is none."""
    max_skipped: Positive = 50
    """A run that skips more updates than this in a row stops and says why."""

    @property
    def begin_by_experts(self) -> bool:
        """Whether the first images, or their labels, are what a trained expert says."""
        return self.init in CHOSEN_BY_EXPERTS or (self.soft_labels and self.label_init == "experts")

    @model_validator(mode="after")
    def _rate_of_sgd(self) -> Self:
        if self.optimiser == "sgd" and self.lr is None:
            raise ValueError(
                "optimiser sgd has no default lr, as adam's is far too small for it; set images.lr, of 10 to 1000, "
                "or images.optimiser to adam"
            )
        return self


class MatchingSettings(Settings):
    """What of real images a synthetic set is matched to, and by which loss."""

    what: Literal["trajectories", "gradients", "features", "characteristics"] = "trajectories"
    """trajectories: of experts. The others compare, class by class, synthetic images with some real ones under other
    networks. gradients: those of the loss (DC, DSA). features: their means (DM). characteristics: their characteristic
    functions (NCFM)."""
    real_batch: Positive = 128
    """All but trajectories: real images of each class in an outer step."""
    augment: bool = True
    """All but trajectories: show both sides the same augmentation; without, gradients are DC's."""
    network_steps: Positive | None = None
    """gradients: outer steps until a fresh network; by default as many as images per class, up to 50."""
    train_steps: Count | None = None
    """gradients: steps that the network trains on the set between two outer steps; by default 500 / ipc, up to 50."""
    network_lr: Rate = 0.02
    """gradients: its step size; without momentum, so twice the published 0.01 with 0.5."""
    easy_base: Annotated[float, Field(ge=0)] = 0.0
    """trajectories: HoP-TM's easy to complex. A parameter counts once its squared error has been below this times the
    expert's mean squared path, at first. 0: all count from the start."""
    easy_growth: Annotated[float, Field(ge=1)] = 1.5
    """Factor by which `easy_base` grows each time."""
    easy_every: Positive | None = None
    """Outer steps from one growth of `easy_base` to the next; by default a twentieth of the run, of its time where it
    has a time budget, as published."""
    shape_weight: Annotated[float, Field(ge=0)] = 0.0
    """trajectories: HoP-TM's λ: how much the angles between start, middle and end count beside the distance."""

    def easy_below(self, outer_step: int, spent: float) -> float | None:
        """The threshold at an outer step, with a share `spent` of the run over; None where all parameters count."""
        if not self.easy_base:
            return None
        times = int(spent * EASY_TIMES) if self.easy_every is None else outer_step // self.easy_every
        grown = math.log(self.easy_base) + times * math.log(self.easy_growth)
        return math.exp(min(grown, LARGEST_EXPONENT))


class SubsetSettings(Settings):
    """Subsets of the images that are learned one after another, each on experts that have learned those before it."""

    count: Positive = 1
    """How many, at most as many as images per class. 1: all images are learned at once."""
    steps: Positive | None = None
    """Outer steps of each but the last, which has all that are left. By default all have an equal share of the run: of
    its outer steps or, where it has one, of its time budget."""
    continued: Literal["together", "in-sequence"] = "together"
    """What experts train on before real images. together: all earlier subsets (PDD). in-sequence: the first, then the
    first two, and so on (SeqMatch)."""
    train_steps: Positive = 100
    """Training steps on them, each time."""
    experts: Positive = 2
    """Experts of each later subset; they are trained within the run and its budget."""


class OverlapSettings(Settings):
    """Dynamic overlap mitigation: match, separate halves that have become alike, retrain."""

    enabled: bool = True
    """Needs two images per class."""
    threshold: Rate = 0.9
    """A cycle begins once the overlap ratio falls below this; real halves have about 1."""
    weight: Annotated[float, Field(ge=0)] = 4.0
    """The MMD weight, in units that mean the same on every dataset: while separating, the overlap ratio's gradient is
    scaled to so many times the norm of the matching gradient. 0 is the same as not enabled."""
    look_every: Positive | None = None
    """Outer steps of matching between two looks at the overlap, twice as many after a cycle that was undone; by default
    such that cycles take at most a fifth of all."""
    separate_steps: Positive = 15
    """Most outer steps of the separate phase, which ends once the halves are as varied as real ones."""
    retrain_steps: Count = 10
    """Outer steps of the retrain phase; 0 separates alone."""


class EvaluationSettings(Settings):
    """How sets are scored: fresh networks, a fixed number of update steps, the same recipe for every set."""

    networks: tuple[str, ...] = ("convnet",)
    """Architectures: convnet (the matching network), resnet18, resnet18_bn, vgg11, alexnet, vit."""
    seeds: Positive = 3
    """Networks trained of each."""
    random_draws: Positive = 3
    """Draws of random real images to compare with, each scored by every network and seed."""
    compare_with: tuple[Literal["random", "full"], ...] = ("random", "full")
    """What is scored beside the set: random real images of equal number, full data."""
    steps: Positive = 300
    """Update steps on a synthetic set and on random images."""
    full_steps: Positive = 600
    """Update steps on the full data, whose classes are drawn as often as they occur."""
    lr: Rate = 0.01
    """Step size."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty."""
    batch_size: Positive = 64
    """Images a step; a smaller set is seen whole."""
    validate_every: Positive | None = None
    """Outer steps between two scorings on the validation split, which decide what is kept; by default as many as make
    them about a fifth of the work."""
    validation_networks: Positive = 2
    """Networks of each such scoring."""
    validation_steps: Positive = 100
    """Update steps of each of them: enough to rank sets, at a third of the price."""
