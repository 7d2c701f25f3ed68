"""Work on a GPU that is asked for once and done many times: CUDA graphs.

A training step is some hundred small kernels, which a GPU takes less time to run than Python to ask for. A graph asks
for all of them at once, and can only do the very same again: what changes from one run to the next is copied into the
tensors that it reads, and nothing may depend on what they hold. On a CPU, where asking costs nothing, it is run again.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is collected while recording: a graph that is freed then would end it. Nor are kernels tried out, and
    those are taken that add up in a fixed order (at no cost that was seen).
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    as_it_is = torch.backends.cudnn.allow_tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=as_it_is):
            yield
    finally:
        if collecting:
            gc.enable()


class Recording(Generic[T]):
    """What `run` does, on tensors that it holds. It is run once here, and must bear that.

    `pool`: recordings of the same one share their memory, each overwriting what the others have found.
    """

    def __init__(self, run: Callable[[], T], device: torch.device, pool: Any = None) -> None:
        # Kept, for the tensors that it holds.
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        self._graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with _undisturbed():
            with torch.cuda.stream(aside):
                # Libraries choose and load their kernels at the first run, which can't be recorded.
                run()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph, pool=pool):
                self._found = run()

    def __call__(self) -> T:
        """Does it again; what is returned is overwritten the next time."""
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._found


def memory_pool(device: torch.device) -> Any:
    """For recordings that share their memory."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def side_by_side(runs: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Runs all of them, on a GPU at the same time: kernels that are too small to fill it leave room for others."""
    if device.type != "cuda" or len(runs) == 1:
        for run in runs:
            run()
        return
    now = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in runs]  # type: ignore[no-untyped-call]
    for stream, run in zip(streams, runs, strict=True):
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            run()
    for stream in streams:
        now.wait_stream(stream)
