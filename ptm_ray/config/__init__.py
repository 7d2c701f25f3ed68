"""What a run is: frozen, closed models, from files, flags or code alike. No torch here, so that `--help` is instant."""

from ptm_ray.config.models import DistillConfig
from ptm_ray.config.parts import (
    EvaluationSettings,
    ExpertSettings,
    ImageSettings,
    MatchingSettings,
    NetworkSettings,
    OverlapSettings,
    ScheduleSettings,
    StudentSettings,
    SubsetSettings,
)

__all__ = [
    "DistillConfig",
    "EvaluationSettings",
    "ExpertSettings",
    "ImageSettings",
    "MatchingSettings",
    "NetworkSettings",
    "OverlapSettings",
    "ScheduleSettings",
    "StudentSettings",
    "SubsetSettings",
]
