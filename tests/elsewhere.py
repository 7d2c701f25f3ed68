"""A device that is none: tensors there are computed by the CPU, but don't mix with the CPU's own, as a GPU's don't.

What runs on it, to the same bits as on the CPU, keeps all of its tensors on one device. It goes by the name of torch's
device without values, `meta`, and exists inside of `elsewhere()`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
aten = torch.ops.aten
#: May read from both sides, as they do on a GPU.
CROSSING = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten._index_put_impl_.default}
CROSSING |= {aten.index_put.default, aten.index_put_.default}


class There(torch.Tensor):
    """A tensor of that device; `held` is what the CPU knows of it."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=DEVICE, requires_grad=False
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Inside of it the device exists."""
    with _Operations(), _Constants():
        yield


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """`torch.tensor` makes a tensor by no operation that a mode of dispatch hears of."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


def run(op: Any, args: Any, kwargs: Any) -> Any:
    """On the CPU; what comes out is there if anything that went in was, or if it was asked for there."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in tensors if isinstance(value, There)]
    here = [value for value in tensors if not isinstance(value, There)]
    asked = kwargs.get("device")
    to_there = bool(there) if asked is None else torch.device(asked).type == DEVICE
    if there and op not in CROSSING:
        if any(value.dim() for value in here):
            raise RuntimeError(f"{op}: tensors on two different devices, {[tuple(value.shape) for value in here]} here")
        if op._schema.is_mutable and not isinstance(args[0], There):
            raise RuntimeError(f"{op}: what is here can't be changed by what is elsewhere")
    if op is aten.copy_.default:
        to_there = isinstance(args[0], There)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(value.held): value for value in there}
    known |= {id(value): value for value in here}
    out = op(*tree_map(_held, args), **tree_map(_held, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return There(value) if to_there else value

    return tree_map(placed, out)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value
