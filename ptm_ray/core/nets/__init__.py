"""The architectures. `build` is the way in; each file below holds one family."""

from ptm_ray.core.nets.registry import ARCHITECTURES, build

__all__ = ["ARCHITECTURES", "build"]
