"""Loops over feature maps, compiled by numba and spread over the threads that torch would use.

Importing this needs numba and threadpoolctl. The first call on a machine compiles, for a few seconds; later processes
find what was compiled beside the source, or in the user's cache.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from threadpoolctl import ThreadpoolController

#: Of numpy: as compiled loops see tensors.
Array = Any
Arrays = tuple[Array, ...]
#: Fewer numbers than this are not worth another thread.
A_THREAD = 2**16


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call for a type of number. Whatever was put around the function stays outside.

    Nothing may be assumed to be finite: a student that diverged must be seen to.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
    inner = inspect.unwrap(function)
    made: Callable[..., Any]
    try:
        made = numba.njit(cache=True, **options)(inner)
    except RuntimeError:
        # No folder can be written to: every process compiles for itself.
        made = numba.njit(**options)(inner)
    return made


def arrays(value: Any) -> Any:
    """A tensor as numpy sees it, contiguous; all tensors of a tuple; anything else as it is."""
    if isinstance(value, tuple):
        return tuple([arrays(one) for one in value])
    return value.detach().contiguous().numpy() if isinstance(value, torch.Tensor) else value


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="maps")


@cache
def _products() -> list[Any]:
    """The libraries that compute numpy's matrix products."""
    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return found


@contextmanager
def _products_on_one_thread() -> Iterator[None]:
    """Since the threads that ask for them are all there should be: with two of each, steps took twice as long."""
    changed = [(library, threads) for library in _products() if (threads := library.num_threads) != 1]
    for library, _ in changed:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, threads in changed:
            library.set_num_threads(threads)


def spread(work: Callable[[int, int], None], units: int, size: int) -> None:
    """Does so many units of work, on `size` numbers in all, each thread a share of them: from one up to another."""
    threads = max(1, min(torch.get_num_threads(), units, size // A_THREAD))
    cuts = [units * k // threads for k in range(threads + 1)]
    mine, *others = itertools.pairwise(cuts)

    def quietly(first: int, stop: int) -> None:
        # Of a student that diverged the run says so itself, once.
        with np.errstate(all="ignore"):
            work(first, stop)

    with _products_on_one_thread():
        started = [_helpers(threads - 1).submit(quietly, *span) for span in others]
        quietly(*mine)
        for one in started:
            one.result()
