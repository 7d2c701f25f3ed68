"""Connecting to Ray: the cluster that is there, or a local one of our own. Importing this starts nothing."""

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from ptm_ray.errors import ConfigError, Terminated, WorkerFailed, first_line

#: Seconds that a cluster whose nodes come and go is given to grow to the workers asked for: an environment variable, as
#: it is the cluster that knows. Others are refused what they have not at once.
WAIT_FOR_NODES = "PTM_RAY_WAIT_FOR_NODES_S"
#: Seconds between two looks at whether they have come.
LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


def _private_token() -> None:
    """Ray's token file, made before Ray makes it: readable by this user alone, where Ray's own is by everyone."""
    path = Path.home() / ".ray" / "auth_token"
    if path.exists() or "RAY_AUTH_TOKEN_PATH" in os.environ or "RAY_AUTH_TOKEN" in os.environ:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))


def _end(*_: object) -> None:
    raise Terminated


def _answer_sigterm(by: Any) -> None:
    """From the main thread, to which signals come."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, by)


@contextmanager
def connected(num_cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray for as long as the block runs.

    Uses the connection that is already there; else the cluster at RAY_ADDRESS (as in a submitted job); else starts a
    local Ray with `num_cpus` CPUs (by default all), without dashboard, reachable from this machine alone, and stops it
    at the end. SIGTERM ends the block with `Terminated`, as Ctrl-C does with `KeyboardInterrupt`, but where the process
    has a handler of its own. Raises `WorkerFailed` where a named cluster can't be reached, `ConfigError` for no CPUs.
    """
    if num_cpus is not None and num_cpus < 1:
        raise ConfigError(f"{num_cpus} workers asked for; give 1 or more, or leave --workers out for one on every CPU")
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    if address:
        try:
            ray.init(address=address, log_to_driver=False)
        # The last two are of other versions, and of what is no address of a cluster.
        except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
            raise WorkerFailed(
                f"no Ray cluster answers at {address} ({first_line(error)}); check RAY_ADDRESS, or unset it"
            ) from error
    else:
        _private_token()
        # Its greeting and its word on tokens are for those who run a cluster; errors still come through.
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # Ray has set a handler that dumps the stack and aborts.
    _answer_sigterm(_end if handler == signal.SIG_DFL else handler)
    try:
        yield
    finally:
        ray.shutdown()
        _answer_sigterm(handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt` within the block and after it.

    Ray Train puts a handler of its own in its place, which ends the process as if all was well, and leaves it there.
    """
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def count_workers(asked: int | None, gpus: float = 0.0) -> int:
    """One-CPU workers to start, with a share of a GPU each where `gpus` says so: as asked, else as many as there is
    room for. A cluster whose nodes come and go is given time to grow to that. Raises `ConfigError` for more.
    """
    if gpus < 0:
        raise ConfigError(f"a worker's share of a GPU must be 0 or more, got {gpus:g}")
    if gpus > 1 and not gpus.is_integer():
        raise ConfigError(f"a worker's share of a GPU must be whole above 1, got {gpus:g}; a worker uses one, give 1")
    await_nodes(asked or 1, gpus)
    there = max(1, _room(0))
    if gpus:
        room = _room(gpus)
        if room < max(1, asked or 1):
            raise ConfigError(
                f"{asked or 1} workers with {gpus:g} of a GPU each asked for, but Ray has "
                f"{ray.cluster_resources().get('GPU', 0.0):g} GPUs; lower --gpus-per-worker or --workers, or add nodes"
            )
        there = min(there, room)
    if asked is None:
        return there
    if asked > there:
        raise ConfigError(f"{asked} workers asked for, but Ray has {_room(0)} CPUs; lower --workers or add nodes")
    return asked


def _room(gpus: float) -> int:
    """How many workers the nodes that are there can hold at once: none spans two nodes, and no share two GPUs."""

    def on(node: dict[str, float]) -> int:
        cpus, whole = int(node.get("CPU", 0.0)), int(node.get("GPU", 0.0))
        if not gpus:
            return cpus
        return min(cpus, whole // int(gpus) if gpus > 1 else whole * int(1 / gpus + 1e-9))

    return sum(on(node["Resources"]) for node in ray.nodes() if node["Alive"])


def await_nodes(workers: int, gpus: float) -> None:
    """Asks the cluster's autoscaler for nodes that hold so many workers, and waits for them, but not for ever."""
    limit_s = float(os.environ.get(WAIT_FOR_NODES, "0"))
    if limit_s <= 0 or _room(gpus) >= workers:
        return
    log.warning("waiting for nodes: there is room for %d of %d workers", _room(gpus), workers)
    # Takes a moment to import, which others need not wait for.
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    request_resources(bundles=[bundle] * workers)
    try:
        deadline = time.monotonic() + limit_s
        while _room(gpus) < workers and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
    finally:
        # What is asked for is kept until something else is, long after this job has ended.
        request_resources(bundles=[])
