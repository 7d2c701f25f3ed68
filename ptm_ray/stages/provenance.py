"""What made a result: which state of this package, on what processor."""

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch

import ptm_ray


@cache
def code_digest() -> str:
    """Of all modules of this package, as they are installed: 12 hex digits.

    A version number says what was released. Tables are made over weeks, by what there is in between.
    """
    root = Path(ptm_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def processor(device: torch.device | str) -> str:
    """The model's name, and of a CPU what its instructions can do; of the GPU where a process works on one."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = ""
    named = [line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{' with AMX' if 'amx_tile' in about else ''}"
