"""The synthetic set before the first update."""

import torch

from ptm_ray.core.herding import herded_rows
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import Synthetic, balanced_rows, from_noise, from_real
from ptm_ray.core.trajectory import TrajectorySource
from ptm_ray.stages.problem import Problem


def initial_set(problem: Problem, trajectories: TrajectorySource, seeds: Seeds) -> Synthetic:
    """By the settings: noise, or real images; herding asks the last snapshot of a drawn expert."""
    config, data = problem.config, problem.dataset
    # The first inner lr is found once there is a set to try it on.
    lr, draw = config.student.inner_lr or config.experts.lr, seeds.stream("initial images")
    if config.images.init == "noise":
        shape = (data.channels, data.resolution, data.resolution)
        synthetic = from_noise(shape, data.num_classes, config.ipc, lr, draw)
    else:
        images, labels = problem.tensors("train")
        if config.images.init == "herding":
            expert = int(torch.randint(trajectories.num_experts, (), generator=draw))
            theta = torch.from_numpy(trajectories.vector(expert, config.experts.snapshots).copy())
            rows = herded_rows(problem.network(), theta, images, labels, config.ipc, data.class_names, draw)
        else:
            resample = config.images.init == "real-resampled"
            rows = balanced_rows(labels, config.ipc, data.class_names, draw, replacement=resample)
        synthetic = from_real(images, labels, rows, data.num_classes, lr)
    if config.images.soft_labels:
        # Softened enough that the gradient of the softmax is not lost in rounding, sharp enough to stay the label.
        synthetic.label_logits = 5.0 * torch.nn.functional.one_hot(synthetic.classes, data.num_classes).float()
    return synthetic
