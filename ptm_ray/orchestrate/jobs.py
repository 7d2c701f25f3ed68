"""A command as a job on a cluster: as by `ray job submit`, with this package on board and the job's own exit code."""

import asyncio
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobInfo, JobStatus, JobSubmissionClient

import ptm_ray
from ptm_ray.errors import ConfigError, WorkerFailed, first_line

#: Seconds that a cluster which has just started may take until it accepts jobs: its head answers before its agent does.
ACCEPT_LIMIT_S = 60.0
#: Seconds that a job which has ended may take to say how.
END_LIMIT_S = 60.0
#: What asking a cluster raises. requests' errors are OSErrors.
UNANSWERED = (AuthenticationError, aiohttp.ClientError, OSError, RuntimeError, ValueError)
#: Where Ray looks for a cluster, whatever address it is given.
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
#: Never sent along, whatever the folder: they are large or private, and no job needs them.
EXCLUDED = (".git", ".venv", "runs")


class Cluster:
    """A cluster that takes jobs, by the address of its dashboard: `http://HEAD:8265`. None: RAY_API_SERVER_ADDRESS.

    Raises `WorkerFailed` where none answers.
    """

    def __init__(self, address: str | None = None) -> None:
        # What Ray uploads, and that the job's log has ended, is nothing to tell.
        for chatty in ("ray.dashboard", "ray._private.runtime_env"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        where = address or "RAY_API_SERVER_ADDRESS or this machine"
        try:
            with _without_others(address):
                self._client = JobSubmissionClient(address)
        except UNANSWERED as error:
            raise WorkerFailed(
                f"no Ray cluster takes jobs at {where} ({first_line(error)}); check --address and, where it asks for a "
                "token, RAY_AUTH_MODE and RAY_AUTH_TOKEN"
            ) from error

    def submit(
        self,
        words: Sequence[str],
        *,
        working_dir: Path,
        environment: Mapping[str, Any] | None = None,
        python: str = "python",
    ) -> str:
        """Hands over `ptm-ray WORDS`, to be run in a copy of `working_dir`; returns the job's name.

        This very package travels with the job, so that the cluster needs its dependencies alone. `environment`: Ray's
        runtime environment beside that, such as `env_vars`; its `excludes` and `py_modules` come to ours. `python`: the
        cluster's, by its name or path there.
        """
        ours = {"excludes": list(EXCLUDED), "py_modules": [str(Path(ptm_ray.__file__).parent)]}
        runtime_env = {"working_dir": str(working_dir), **(environment or {})}
        for name, listed in ours.items():
            own = runtime_env.get(name, [])
            if not isinstance(own, list):
                raise ConfigError(f"{name} of the runtime environment is {own!r}; give a list")
            runtime_env[name] = [*listed, *own]
        entrypoint = shlex.join([python, "-m", "ptm_ray", *words])
        deadline = time.monotonic() + ACCEPT_LIMIT_S
        while True:
            try:
                job: str = self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
                return job
            except UNANSWERED as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise WorkerFailed(f"the cluster did not take the job: {first_line(error)}") from error
                time.sleep(1)

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Hands on what the job prints, as it prints it; returns its exit code once it has ended.

        Raises `WorkerFailed` where it fails, is stopped or can't be watched any more.
        """

        async def tail() -> None:
            logs = aiter(self._client.tail_job_logs(job))
            while True:
                with _watching(job):
                    lines = await anext(logs, None)
                if lines is None:
                    return
                show(lines)

        asyncio.run(tail())
        with _watching(job):
            info = self._ended(job)
        if info.status == JobStatus.SUCCEEDED:
            return 0
        if info.status == JobStatus.STOPPED:
            raise WorkerFailed(f"job {job} was stopped")
        # A job that never ran its command has no exit code, but a reason.
        if info.driver_exit_code is None:
            raise WorkerFailed(f"job {job} failed: {first_line(RuntimeError(info.message))}")
        return int(info.driver_exit_code)

    def _ended(self, job: str) -> JobInfo:
        deadline = time.monotonic() + END_LIMIT_S
        while not (info := self._client.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                raise WorkerFailed(f"job {job} stopped printing but is {info.status}; see `ray job status {job}`")
            time.sleep(0.2)
        return info


@contextlib.contextmanager
def _watching(job: str) -> Iterator[None]:
    try:
        yield
    except UNANSWERED as error:
        raise WorkerFailed(
            f"lost sight of job {job} ({first_line(error)}), which goes on; `ray job logs --follow {job}` shows it"
        ) from error


@contextlib.contextmanager
def _without_others(address: str | None) -> Iterator[None]:
    """Ray takes what its environment names before the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in ADDRESSES if address and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
