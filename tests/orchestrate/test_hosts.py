"""Several machines: hosts in network namespaces where these are allowed, else Ray's own cluster for tests."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import ptm_ray as ptm
from tests.namespaces import ALONE, namespaces_allowed
from tests.orchestrate.job_on_hosts import LONG
from tests.processes import environment_without_ray
from tests.small import InMemory, small_problem
from tests.stages.test_team import distillation

HOSTS = Path(__file__).with_name("hosts.py")


def test_three_hosts_share_the_work_and_the_loss_of_one_changes_nothing(tmp_path):
    allowed = namespaces_allowed()
    words = [*ALONE, sys.executable, HOSTS, "namespaces"] if allowed else [sys.executable, HOSTS, "one-machine"]
    done = subprocess.run(
        [*words, tmp_path], env=environment_without_ray(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen["addresses"]) == (3 if allowed else 1)
    assert seen["nodes_of_workers"] == 3
    assert seen["all_read_what_the_files_hold"]
    assert (seen["trials"], seen["failed"]) == (3, 0)
    assert (tmp_path / "was-cut").exists()
    assert seen["alive"] == 2
    assert seen["outer_steps"] == LONG["outer_steps"]
    assert seen["kinds"] == ["synthetic", "random", "full"]
    problem = small_problem(experts=LONG["experts"], outer_steps=LONG["outer_steps"])
    alone = distillation(problem, tmp_path / "alone", InMemory(problem))
    list(alone.run())
    assert np.array_equal(ptm.SyntheticSet.load(tmp_path / "run" / "set").images, alone.result().images.numpy())
