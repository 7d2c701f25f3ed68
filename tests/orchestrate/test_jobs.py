"""Submitted jobs, as on a cluster: a script with the Python API, and the command, in the environment given."""

import json
import sys

import numpy as np
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.small import SETTINGS, small_dataset

SCRIPT = """
import json, sys
import ptm_ray as ptm

if __name__ == "__main__":
    data, settings, out = sys.argv[1:]
    result = ptm.distill(data, out=out + "/run", experts_dir=out + "/experts", **json.loads(settings))
    print(json.dumps(result.to_json()))
"""


@pytest.fixture
def submit(ray_cluster, pytestconfig, wait_until):
    """Submits an entry point with `cluster/runtime_env.yaml`; its status and log once it has ended."""

    def run(entrypoint):
        root = pytestconfig.rootpath
        environment = yaml.safe_load((root / "cluster" / "runtime_env.yaml").read_text())
        client = JobSubmissionClient(f"http://{ray_cluster['webui_url']}")

        def accepted():
            try:
                return client.submit_job(entrypoint=entrypoint, runtime_env={**environment, "working_dir": str(root)})
            except RuntimeError as error:
                # The head is up before its agent is, which takes jobs.
                if "No available agent" not in str(error):
                    raise
                return None

        job = wait_until(accepted, limit_s=60)
        ended = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}
        wait_until(lambda: client.get_job_status(job) in ended, limit_s=200)
        return client.get_job_status(job), client.get_job_logs(job)

    return run


def test_a_submitted_script_distils_on_the_cluster_it_was_given_to(submit, tmp_path):
    data = small_dataset()
    parts = {part: getattr(data, part) for part in ("train", "val", "test")}
    arrays = {f"{part}_images": split.images for part, split in parts.items()}
    labels = {f"{part}_labels": split.labels for part, split in parts.items()}
    np.savez(tmp_path / "small.npz", **arrays, **labels)
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    status, log = submit(f"{sys.executable} {script} {tmp_path}/small.npz '{json.dumps(SETTINGS)}' {tmp_path}")
    assert status == JobStatus.SUCCEEDED, log
    said = json.loads(log.strip().splitlines()[-1])
    assert list(said["scores"]) == ["synthetic", "random", "full"]
    assert (tmp_path / "run" / "set" / "synthetic.parquet").exists()


def test_a_submitted_command_fails_with_its_message(submit):
    status, log = submit(f"{sys.executable} -m ptm_ray distill --data pneumonia_mnist")
    assert status == JobStatus.FAILED
    assert "did you mean 'pneumoniamnist'" in log
