"""ptm-ray: distil labelled medical images into a few synthetic images per class.

    import ptm_ray as ptm
    result = ptm.distill("cellphantom", ipc=10, out="runs/cells", budget_minutes=5)
    made = ptm.SyntheticSet.load(result.set)

Importing it starts nothing and loads neither torch nor Ray; the names below arrive when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptm_ray.api import (
        AuditResult,
        BenchResult,
        DistillResult,
        SweepResult,
        SyntheticSet,
        audit,
        bench,
        distill,
        evaluate,
        export,
        load_dataset,
        sweep,
        train_experts,
    )

__version__ = "0.1.0"
__all__ = [
    "AuditResult",
    "BenchResult",
    "DistillResult",
    "SweepResult",
    "SyntheticSet",
    "audit",
    "bench",
    "distill",
    "evaluate",
    "export",
    "load_dataset",
    "sweep",
    "train_experts",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        # Tune and the report of benchmarks take a moment to import, which those who need neither need not wait for.
        homes = {
            "AuditResult": "ptm_ray.orchestrate.audit",
            "BenchResult": "ptm_ray.orchestrate.bench",
            "SweepResult": "ptm_ray.orchestrate.sweep",
        }
        return getattr(import_module(homes.get(name, "ptm_ray.api")), name)
    raise AttributeError(f"module 'ptm_ray' has no attribute {name!r}")
