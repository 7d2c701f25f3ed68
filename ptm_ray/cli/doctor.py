"""`ptm-ray doctor`: what this machine has."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from ptm_ray import __version__
from ptm_ray.cli.flags import SaysDefault, Switch, parse
from ptm_ray.errors import ConfigError, readable

ABOUT = "Says what this machine has: versions, cores, memory, GPUs, Ray, and where datasets and experts are found."
PACKAGES = ("torch", "ray", "medmnist", "numpy", "numba", "pyarrow", "torchmetrics")


@dataclass(frozen=True)
class Doctor:
    """Flags of `doctor`."""

    data_root: Annotated[Path | None, SaysDefault] = None
    """Folder in which datasets are looked for first, and into which MedMNIST's are downloaded (default: its own)."""
    json: Switch = False
    """Print one JSON object as the last line of standard output."""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _there(folder: Path) -> Path:
    """Itself or, before it is made, the nearest folder above it."""
    return next(above for above in (folder, *folder.parents) if above.exists())


def _has_bfloat16() -> bool:
    """Whether convolutions on CPUs have instructions for it; without them they take many times as long."""
    import torch

    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def look(data_root: Path | None) -> dict[str, Any]:
    """Everything that the command shows."""
    import torch

    from ptm_ray.api import default_experts_dir
    from ptm_ray.data import medmnist

    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    folders = medmnist.folders(data_root)
    experts = default_experts_dir()
    return {
        "python": platform.python_version(),
        "ptm-ray": __version__,
        **{package: _version(package) for package in PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bfloat16": "fast" if _has_bfloat16() else "slow: this processor has no instructions for it",
        "memory_gib": round(_memory_gib(), 1),
        "gpus": gpus,
        "ray_address": os.environ.get("RAY_ADDRESS", "none: a local Ray is started for each command"),
        "datasets": {
            str(folder): sorted(path.name for path in folder.glob("*.npz")) if folder.is_dir() else "no such folder"
            for folder in folders
        },
        "experts_dir": str(experts),
        "experts_kept": len(list(experts.glob("*/expert-*.arrow"))),
        "disk_free_gib": round(shutil.disk_usage(_there(experts)).free / 2**30, 1),
    }


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Doctor, argv, Doctor(), "doctor", ABOUT)
    from ptm_ray.cli.show import last_line

    with readable(asked.data_root, ConfigError):
        found = look(asked.data_root)
    for name, value in found.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                listing = ", ".join(inner) or "nothing" if isinstance(inner, list) else inner
                print(f"{name:<14} {key}: {listing}")
        else:
            print(f"{name:<14} {', '.join(value) or 'none' if isinstance(value, list) else value}")
    if asked.json:
        last_line(found)
