"""Loops over feature maps, compiled by numba and spread over the threads that torch would use.

Importing this needs numba and threadpoolctl. The first call on a machine compiles, for some twenty seconds; later
processes find what was compiled in the user's cache. It is kept there by what the source says, not by where it lies,
since the sources of a job travel, and lie elsewhere in each.
"""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core.caching import UserWideCacheLocator
from threadpoolctl import ThreadpoolController

#: Of numpy: as compiled loops see tensors.
Array = Any
Arrays = tuple[Array, ...]
#: Fewer numbers than this are not worth another thread.
A_THREAD = 2**16


class BySource(UserWideCacheLocator):  # type: ignore[misc]
    """Tells numba a folder for what it compiled: in its cache folder, one for each text of a source file."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        if numba.config.CACHE_DIR:
            self._cache_path = str(Path(numba.config.CACHE_DIR) / self.get_suitable_cache_subpath(file))

    @classmethod
    def get_suitable_cache_subpath(cls, file: str) -> str:
        """The name of that folder."""
        return f"ptm_ray-{Path(file).stem}-{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}"

    def get_source_stamp(self) -> str:
        """What has to be the same for it to be used."""
        return Path(self._cache_path).name


@contextmanager
def _kept_by_source() -> Iterator[None]:
    """What numba decorates here asks `BySource` first, unless whoever runs this has told numba whom to ask."""
    before = numba.config.CACHE_LOCATOR_CLASSES
    numba.config.CACHE_LOCATOR_CLASSES = before or f"{__name__}.{BySource.__name__},InTreeCacheLocator"
    try:
        yield
    finally:
        numba.config.CACHE_LOCATOR_CLASSES = before


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call for a type of number. Whatever was put around the function stays outside.

    It may call compiled functions of its own file alone: what is kept of it knows nothing of a change in others.
    Values that are not finite must come through ("nnan" and "ninf" are left out): a student that diverged must be seen.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
    inner = inspect.unwrap(function)
    made: Callable[..., Any]
    try:
        with _kept_by_source():
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


def _quietly(work: Callable[[int, int], None], span: tuple[int, int]) -> None:
    # Of a student that diverged the run says so itself, once.
    with np.errstate(all="ignore"):
        work(*span)


def spread(work: Callable[[int, int], None], units: int, size: int) -> None:
    """Does so many units of work, on `size` numbers in all, each thread a share of them: from one up to another."""
    threads = max(1, min(torch.get_num_threads(), units, size // A_THREAD))
    cuts = [units * k // threads for k in range(threads + 1)]
    mine, *others = itertools.pairwise(cuts)
    with _products_on_one_thread():
        started = [_helpers(threads - 1).submit(_quietly, work, span) for span in others]
        _quietly(work, mine)
        for one in started:
            one.result()
