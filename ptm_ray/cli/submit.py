"""`ptm-ray submit`: any of the commands as a job on a cluster."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ptm_ray.cli.flags import SaysDefault, Switch, parse, value_of
from ptm_ray.config.files import read_environment
from ptm_ray.errors import ConfigError, readable

ABOUT = """Runs a command on a Ray cluster: the words after -- are those of ptm-ray, as on a laptop. Shows what the job
prints and ends with its exit code. The code of this package and the working directory travel with the job; paths in the
command are the cluster's, and experts and results belong into a folder that all of its machines see.

  ptm-ray submit --address http://HEAD:8265 -- distill --data pneumoniamnist --ipc 10 --data-root /shared/medmnist \\
      --experts-dir /shared/experts --out /shared/runs/pneumonia

Folders called runs, .venv or .git stay here. Interrupted, it stops watching and says how to stop the job, which goes
on.
"""
#: Commands that leave something behind.
WRITING = ("distill", "experts", "sweep", "bench")
LOST_WITH_THE_JOB = (
    "what the command writes stays with the job, on one machine; give a folder that all machines see, or an s3:// URL"
)


@dataclass(frozen=True)
class Submit:
    """Flags of `submit`."""

    address: Annotated[str | None, SaysDefault] = None
    """The cluster's dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, else a Ray on this machine)."""
    working_dir: Annotated[Path, SaysDefault] = Path()
    """Folder that is copied to the cluster and that the command runs in, at most 500 MiB (default: this one)."""
    runtime_env: Annotated[Path | None, SaysDefault] = None
    """More of Ray's runtime environment, such as env_vars, from a YAML, TOML or JSON file (default: none)."""
    python: str = "python"
    """Python on the cluster's machines, by name or path."""
    no_wait: Switch = False
    """Print the job's name and leave it to itself."""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    words = list(argv)
    command = words[words.index("--") + 1 :] if "--" in words else []
    asked = parse(Submit, words[: words.index("--")] if "--" in words else words, Submit(), "submit", ABOUT)
    if not command:
        raise ConfigError("nothing to submit; put a command of ptm-ray after --, such as -- distill --data cellphantom")
    with readable(asked.working_dir, ConfigError):
        if not asked.working_dir.is_dir():
            raise ConfigError(f"no folder {asked.working_dir}; check --working-dir")
    lacking = [flag for flag in ("--out", "--experts-dir") if command[0] in WRITING and value_of(command, flag) is None]
    if lacking:
        print(f"ptm-ray: without {' and '.join(lacking)} {LOST_WITH_THE_JOB}", file=sys.stderr)
    environment = read_environment(asked.runtime_env) if asked.runtime_env else {}
    from ptm_ray.orchestrate.jobs import Cluster

    cluster = Cluster(asked.address)
    job = cluster.submit(command, working_dir=asked.working_dir, environment=environment, python=asked.python)
    print(f"job {job}", file=sys.stderr)
    if asked.no_wait:
        print(job)
        return
    try:
        code = cluster.follow(job, lambda lines: print(lines, end="", flush=True))
    except KeyboardInterrupt:
        print(f"ptm-ray: job {job} goes on; `ray job stop {job}` ends it", file=sys.stderr)
        sys.exit(130)
    sys.exit(code)
