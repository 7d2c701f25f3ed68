"""The Python API from a submitted job, as on a cluster."""

import json
import sys

from ray.job_submission import JobStatus, JobSubmissionClient

SCRIPT = """
import json, pathlib
import ptm_ray as ptm
from tests.small import SETTINGS, small_dataset

if __name__ == "__main__":
    root = pathlib.Path({root!r})
    result = ptm.distill(small_dataset(), out=root / "run", experts_dir=root / "experts", **SETTINGS)
    (root / "said.json").write_text(json.dumps(result.to_json()))
"""


def test_a_submitted_job_distils_on_the_cluster_it_was_given_to(ray_cluster, tmp_path, pytestconfig, wait_until):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.format(root=str(tmp_path)))
    client = JobSubmissionClient(f"http://{ray_cluster['webui_url']}")
    job = client.submit_job(
        entrypoint=f"{sys.executable} {script}", runtime_env={"env_vars": {"PYTHONPATH": str(pytestconfig.rootpath)}}
    )
    ended = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}
    wait_until(lambda: client.get_job_status(job) in ended, limit_s=200)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    said = json.loads((tmp_path / "said.json").read_text())
    assert list(said["scores"]) == ["synthetic", "random", "full"]
