"""Matching losses: how far the student's end is from the expert's."""

from ptm_ray.core.types import Float, Tensor


def matching_loss(
    student: Float[Tensor, " params"], start: Float[Tensor, " params"], target: Float[Tensor, " params"]
) -> Float[Tensor, ""]:
    """‖student − target‖² / ‖start − target‖²; 0 is arrival, 1 means that the student got nowhere.

    Relative to the expert's own path, so that long and short segments weigh alike. Source: MTT (Cazenavette et al.
    2022), eq. 2.
    """
    return (student - target).square().sum() / (start - target).square().sum()
