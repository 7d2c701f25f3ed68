"""The synthetic set before the first update."""

from collections.abc import Callable
from functools import partial

import torch

from ptm_ray.core.coresets import coreset_rows, herd, k_center, k_means
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Synthetic, balanced_rows, from_noise, from_real, natural_rows
from ptm_ray.core.teacher import correct_rows, one_hot_logits, taught_logits
from ptm_ray.core.trajectory import TrajectorySource
from ptm_ray.stages.problem import Problem

#: Ways to choose real images by a trained expert.
CHOICES: dict[str, Callable[..., torch.Tensor]] = {
    "herding": partial(coreset_rows, herd),
    "k-center": partial(coreset_rows, k_center),
    "k-means": partial(coreset_rows, k_means),
    "real-correct": correct_rows,
}


def initial_set(problem: Problem, trajectories: TrajectorySource, seeds: Seeds) -> Synthetic:
    """By the settings: noise, or real images.

    A drawn expert may choose these, and all of them their labels, as trained as they are at their last snapshots.
    """
    config, data = problem.config, problem.dataset

    def trained(expert: int) -> torch.Tensor:
        return problem.parameters(trajectories.vector(expert, config.experts.snapshots))

    # The first inner lr is found once there is a set to try it on.
    lr, draw = config.student.inner_lr or config.experts.lr, seeds.stream("initial images")
    if config.images.init == "noise":
        shape = (data.channels, data.resolution, data.resolution)
        synthetic = from_noise(shape, data.num_classes, config.ipc, lr, draw)
    else:
        images, labels = problem.tensors("train")
        if config.images.init in CHOICES:
            expert = int(torch.randint(trajectories.num_experts, (), generator=draw))
            choose, names = CHOICES[config.images.init], data.class_names
            rows = choose(problem.network(), trained(expert), images, labels, config.ipc, names, draw)
        elif config.images.init == "real-natural":
            rows = natural_rows(len(labels), config.ipc * data.num_classes, draw)
        else:
            resample = config.images.init == "real-resampled"
            rows = balanced_rows(labels, config.ipc, data.class_names, draw, replacement=resample)
        synthetic = from_real(images, labels, rows, data.num_classes, lr)
    synthetic = synthetic.to(problem.device)
    if config.images.soft_labels:
        classes = synthetic.classes
        if config.images.label_init == "experts":
            thetas = [trained(expert) for expert in range(trajectories.num_experts)]
            logits = taught_logits(problem.network(), thetas, synthetic.images, classes, data.num_classes)
        else:
            logits = one_hot_logits(classes, data.num_classes)
        synthetic.label_logits = logits
    return synthetic
