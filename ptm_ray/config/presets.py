"""Methods as presets of the one engine: what each changes of the defaults."""

from collections.abc import Mapping
from typing import Any

from ptm_ray.config.base import merge

# Segment and student were chosen on validation splits, as the defaults of ptm were. Experts are the same for all but
# ftd and hoptm, so that one buffer serves all and only what is matched is compared. Not as published, MTT and all
# that is built on it here: segments begin anywhere on the trajectory, where published ones begin in a first part of it
# that is the shorter the fewer images there are; students take ten steps, not 30 to 80; experts draw classes equally
# often; sets, but datm's, begin with herded real images rather than random ones; images are standardised, where MTT
# whitens CIFAR-10's by ZCA at one and ten images per class; the first inner lr is searched for; images stay between
# black and white, are learned by Adam and are averaged.
MTT: Mapping[str, Any] = {
    "schedule": {"kind": "random", "length": 2},
    "student": {"steps_min": 10, "steps_max": 10, "inner_lr_by_segment": False},
    "overlap": {"enabled": False},
}

FLAT: Mapping[str, Any] = {"flat_radius": 0.01, "flat_gap": 0.3}

#: Method → settings that differ from the defaults.
METHODS: Mapping[str, Mapping[str, Any]] = {
    # arXiv 2403.13469, whose public text has no constants of the schedule, no kernel and no rule by which halves are
    # drawn and retrained: those are of this project's design. Not as published: segments begin after a head start
    # (`stages.head_start`) rather than at the initialisation; 70 to 100 % of outer steps match short later segments
    # instead (`DistillConfig.later_share`); and the first end lies half way to the last, not near the start.
    # `--schedule.start 0 --schedule.later-share 0` is without the first two, and `--schedule.end-min 1` without the
    # third.
    "ptm": {},
    "mtt": MTT,
    # Guo et al. 2024. Not as published: experts are those of the other methods rather than flat ones, labels are
    # learned by the optimiser and at the rate of this engine, an update that explodes makes the inner lr back off, and
    # lengths, steps and rates are MTT's here rather than those of 32 pixels and 100 epochs; and the gate is 1.1 at any
    # ipc, published for one image per class and 1 for more.
    "datm": merge(
        MTT,
        {
            "schedule": {"kind": "window"},
            "images": {
                "init": "real-correct",
                "soft_labels": True,
                "label_init": "experts",
                "skip_above": 1.1,
                "ema": 0.0,
            },
        },
    ),
    # Zhong et al. 2024. Not as published: see `core.trajectory.StraightLine`; its points lie as far apart as snapshots
    # do on the way, for which all are kept, where the paper keeps the first and the last.
    "mct": merge(MTT, {"schedule": {"path": "straight"}}),
    # Du et al. 2023. Not as published: the decay of the averaged images is that of the other methods; and GSAM's α is
    # 0.3 everywhere, published for CIFAR-10 at one and ten images per class and 1 for all else.
    "ftd": merge(MTT, {"experts": FLAT}),
    # Du et al. 2023 and Chen et al. 2024. Not as published: see `stages.staged_matching`.
    "seqmatch": merge(MTT, {"subsets": {"count": 3, "continued": "in-sequence"}}),
    "pdd": merge(MTT, {"subsets": {"count": 3}}),
    # HoP-TM, MICCAI 2025. Not as published: as ftd; segments begin anywhere; and the threshold is relative to the path,
    # beginning where published values would on networks of its size.
    "hoptm": merge(MTT, {"experts": FLAT, "matching": {"easy_base": 3e-4, "shape_weight": 0.5}}),
    # Cui et al. 2023, its approximate gradient alone: without the labels that its target experts give.
    "tesla": merge(MTT, {"student": {"gradient": "tesla"}}),
    # Methods that match classes rather than trajectories. Not as published, any of them: sets begin as those of the
    # other methods do, images are learned by the optimiser and at the rates of this engine, and are averaged; real
    # batches are smaller. Zhao et al. 2021 and Zhao & Bilen 2021; Zhao & Bilen 2023; Wang et al. 2025.
    "dc": {"matching": {"what": "gradients", "augment": False}},
    "dsa": {"matching": {"what": "gradients"}},
    "dm": {"matching": {"what": "features"}},
    "ncfm": {"matching": {"what": "characteristics"}},
    # Real images as they are.
    **{
        method: {"images": {"init": init}, "outer_steps": 0}
        for method, init in {
            "random": "real",
            "random-natural": "real-natural",
            "herding": "herding",
            "k-center": "k-center",
            "k-means": "k-means",
        }.items()
    },
}

#: The method that this project is for.
OURS = "ptm"
#: Kinds of methods that match trajectories: one of its own, or something varied of ours.
TRAJECTORY, VARIANT = "trajectory", "variant"
#: Method → its kind: what it matches, if anything. `full` is no way to make a set, but what sets are compared with.
KINDS: Mapping[str, str] = {
    **dict.fromkeys(METHODS, TRAJECTORY),
    **dict.fromkeys(("dc", "dsa", "dm", "ncfm"), "matching"),
    **{method: "selection" for method, preset in METHODS.items() if preset.get("outer_steps") == 0},
    "full": "full",
}
