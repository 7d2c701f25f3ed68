"""Loops over feature maps, compiled by numba and spread over the threads that torch would use.

Importing this needs numba. The first call on a machine compiles, for a few seconds; later processes find what was
compiled beside the source, or in the user's cache.
"""

import inspect
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import torch

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


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="maps")


def spread(work: Callable[[int, int], None], units: int, size: int) -> None:
    """Does so many units of work, on `size` numbers in all, each thread a share of them: from one up to another."""
    threads = max(1, min(torch.get_num_threads(), units, size // A_THREAD))
    if threads == 1:
        work(0, units)
        return
    cuts = [units * k // threads for k in range(threads + 1)]
    mine, *others = itertools.pairwise(cuts)
    started = [_helpers(threads - 1).submit(work, *span) for span in others]
    work(*mine)
    for one in started:
        one.result()
