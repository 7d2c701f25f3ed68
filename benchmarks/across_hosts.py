"""Bytes that pass between hosts for each outer step, on three hosts in network namespaces (Linux, as root).

    python -m benchmarks.across_hosts

Counted where the hosts' links meet, so heartbeats, logs and evaluators' candidates count too. Two runs that differ in
their outer steps alone tell what a step costs; what is moved once, whatever the steps, cancels out. The images and the
buffer are moved once to each host that reads them: they are told from the first run.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ptm_ray as ptm
from tests.namespaces import ALONE
from tests.orchestrate.hosts import HOSTS, Namespaces

SETTINGS: dict[str, Any] = {"data": "cellphantom", "ipc": 1, "experts": {"count": 6, "steps": 100}}
#: Outer steps of the two runs.
STEPS = (60, 360)
#: Seconds in which what was sent has arrived and been counted.
SETTLED_S = 3.0


def sent_by_hosts() -> int:
    """Bytes that came in on the bridge's side of all links."""
    shown = subprocess.run(["ip", "-s", "-j", "link"], check=True, capture_output=True, text=True).stdout
    links = {link["ifname"]: link["stats64"]["rx"]["bytes"] for link in json.loads(shown)}
    return sum(links[f"link{host}"] for host in HOSTS)


def counted(folder: Path) -> int:
    time.sleep(SETTLED_S)
    return int((folder / "bytes").read_text())


def job(folder: Path) -> None:
    """On the first host: experts, then the two runs."""
    import ray

    ray.init(log_to_driver=False)
    while sum(node["Alive"] for node in ray.nodes()) < len(HOSTS):
        time.sleep(0.3)
    found: dict[str, Any] = {}
    before = counted(folder)
    ptm.train_experts(experts_dir=folder / "experts", workers=len(HOSTS), **SETTINGS)
    found["experts_MB"] = (counted(folder) - before) / 1e6
    idle, started = counted(folder), time.monotonic()
    time.sleep(10)
    found["idle_kB_per_s"] = (counted(folder) - idle) / 1e3 / (time.monotonic() - started)
    moved, seconds = [], []
    for steps in STEPS:
        before = counted(folder)
        made = ptm.distill(
            out=folder / f"run-{steps}",
            experts_dir=folder / "experts",
            workers=len(HOSTS),
            outer_steps=steps,
            evaluation={"compare_with": ()},
            **SETTINGS,
        )
        moved.append(counted(folder) - before)
        seconds.append(made.cost["distillation_s"])
    more = STEPS[1] - STEPS[0]
    (trajectories,) = (folder / "experts").iterdir()
    found["buffer_MB"] = sum(path.stat().st_size for path in trajectories.glob("*.arrow")) / 1e6
    found["run_MB"] = [round(bytes_ / 1e6, 2) for bytes_ in moved]
    found["kB_per_outer_step"] = (moved[1] - moved[0]) / 1e3 / more
    found["of_these_idle_kB"] = found["idle_kB_per_s"] * (seconds[1] - seconds[0]) / more
    print(json.dumps({key: round(v, 2) if isinstance(v, float) else v for key, v in found.items()}))


def hosts(folder: Path) -> int:
    """Starts the hosts and the job, and keeps the count that it reads."""
    running = Namespaces()
    env = {**os.environ, "RAY_ADDRESS": running.start(), "OMP_NUM_THREADS": "1"}
    process = running.job(sys.executable, "-m", "benchmarks.across_hosts", "job", str(folder), env=env)
    while process.poll() is None:
        (folder / "bytes.new").write_text(str(sent_by_hosts()))
        (folder / "bytes.new").rename(folder / "bytes")
        time.sleep(0.2)
    return process.returncode


def main() -> int:
    if sys.argv[1:2] == ["job"]:
        job(Path(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["hosts"]:
        return hosts(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as scratch:
        here = [*ALONE, sys.executable, "-m", "benchmarks.across_hosts", "hosts", scratch]
        # One token for all hosts, of this run's own.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        return subprocess.run(here, env={**os.environ, **token, "PYTHONPATH": os.getcwd()}).returncode


if __name__ == "__main__":
    sys.exit(main())
