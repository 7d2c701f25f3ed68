"""Shapes in signatures: `Float[Tensor, "batch classes"]`.

jaxtyping checks them while the tests run. The mathematics must also run where torch is the only package, so
without jaxtyping the same annotations mean plain `Tensor`.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int
else:
    try:
        from jaxtyping import Float, Int
    except ImportError:

        class Float:
            def __class_getitem__(cls, _: Any) -> type[Tensor]:
                return Tensor

        Int = Float

__all__ = ["Float", "Int", "Tensor"]
