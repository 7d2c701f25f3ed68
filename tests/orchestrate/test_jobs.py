"""Submitted jobs, as on a cluster: a script with the Python API, and the command, in the environment given."""

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from ptm_ray.cli import submit as submit_command
from ptm_ray.errors import ConfigError, WorkerFailed
from ptm_ray.orchestrate.jobs import Cluster
from tests.files import write_dataset
from tests.processes import environment_without_ray, hear_interrupts
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
    write_dataset(tmp_path / "small.npz", small_dataset())
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    status, log = submit(f"{sys.executable} {script} {tmp_path}/small.npz '{json.dumps(SETTINGS)}' {tmp_path}")
    assert status == JobStatus.SUCCEEDED, log
    said = json.loads(log.strip().splitlines()[-1])
    assert list(said["scores"]) == ["synthetic", "random", "full"]
    assert (tmp_path / "run" / "set" / "synthetic.parquet").exists()


def ptm_submit(ray_cluster, *words, **options):
    known = environment_without_ray()
    address = f"http://{ray_cluster['webui_url']}"
    command = [Path(sys.executable).with_name("ptm-ray"), "submit", "--address", address, "--python", sys.executable]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *words], env=known, preexec_fn=hear_interrupts, **pipes, **options)


def test_the_helper_shows_what_the_job_prints_and_ends_as_it_does(ray_cluster, tmp_path):
    (tmp_path / "quick.toml").write_text("ipc = 1")
    done = ptm_submit(ray_cluster, "--", "doctor", "--json", cwd=tmp_path)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert json.loads(out.strip().splitlines()[-1])["ray"]
    bad = ptm_submit(ray_cluster, "--", "distill", "--config", "quick.toml", "--data", "pneumonia_mnist", cwd=tmp_path)
    out, _ = bad.communicate(timeout=120)
    assert bad.returncode == 2
    assert "did you mean 'pneumoniamnist'" in out


def test_modules_of_ones_own_travel_beside_the_package(ray_cluster, tmp_path):
    """Told in YAML, as Ray's own tools take it; all that the job runs is a look at what it was given."""
    for folder in ("work", "mine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    own = {"py_modules": [str(tmp_path / "mine")], "env_vars": {"SAID": "as told"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    look = "import mine, os, ptm_ray; print(mine.__file__, ptm_ray.__file__, os.environ['SAID'], sep='|')"
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{look}"\n')
    (tmp_path / "python").chmod(0o755)
    words = ("--python", str(tmp_path / "python"), "--runtime-env", str(tmp_path / "own.yaml"), "--", "doctor")
    out, err = ptm_submit(ray_cluster, *words, cwd=tmp_path / "work").communicate(timeout=120)
    *files, said = out.strip().splitlines()[-1].split("|")
    assert said == "as told", err
    assert all("py_modules" in file for file in files)


def test_interrupting_the_helper_leaves_the_job_which_can_be_stopped(ray_cluster, tmp_path, wait_until):
    words = ("distill", "--data", "cellphantom", "--ipc", "1", "--out", str(tmp_path / "run"), "--workers", "1")
    watching = ptm_submit(ray_cluster, "--", *words, "--experts-dir", str(tmp_path / "experts"), cwd=tmp_path)
    job = next(line.split()[1] for line in watching.stderr if line.startswith("job "))
    client = JobSubmissionClient(f"http://{ray_cluster['webui_url']}")
    try:
        wait_until(lambda: client.get_job_status(job) == JobStatus.RUNNING, 60)
        wait_until(lambda: (tmp_path / "run" / "run.json").exists(), 120)
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=60)
        assert watching.returncode == 130
        assert f"ray job stop {job}" in err
        assert client.get_job_status(job) == JobStatus.RUNNING
    finally:
        # Whatever happened: it would hold a CPU, and with it the tests that follow.
        client.stop_job(job)
    wait_until(lambda: client.get_job_status(job) == JobStatus.STOPPED, 60)


def test_a_cluster_that_does_not_answer_is_said_in_one_line(tmp_path):
    with pytest.raises(WorkerFailed, match=r"no Ray cluster takes jobs at http://127\.0\.0\.1:9") as caught:
        Cluster("http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


@pytest.fixture
def odd_cluster():
    """The address of a server that refuses whoever asks for its version, as with a wrong token, or is no Ray's."""
    said = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            status, text = said[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield said, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, b""), "Authentication required"),
        ((403, b"Invalid authentication token"), "Invalid authentication token"),
        ((500, b""), "500 Server Error"),
        ((200, b"hello"), "Expecting value"),
    ],
)
def test_a_server_that_does_not_take_jobs_is_said_in_one_line(odd_cluster, answer, words):
    said, address = odd_cluster
    said.append(answer)
    with pytest.raises(WorkerFailed, match=f"no Ray cluster takes jobs at {address} .*{words}") as caught:
        Cluster(address)
    assert "\n" not in str(caught.value)


def test_the_address_that_was_given_wins_over_those_of_the_environment(ray_cluster, monkeypatch):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    Cluster(f"http://{ray_cluster['webui_url']}")
    with pytest.raises(WorkerFailed, match="no Ray cluster takes jobs at RAY_API_SERVER_ADDRESS or this machine"):
        Cluster()


def test_a_job_whose_log_breaks_off_goes_on_and_is_found_again_by_what_is_said(ray_cluster):
    cluster, seen = Cluster(f"http://{ray_cluster['webui_url']}"), []

    class BadLine:
        """A connection that is lost after the first words."""

        async def tail_job_logs(self, job):
            yield "step 1\n"
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    cluster._client = BadLine()
    with pytest.raises(
        WorkerFailed, match=r"lost sight of job j1 \(WebSocket .* 1006\), which goes on; .*logs --follow j1"
    ):
        cluster.follow("j1", seen.append)
    assert seen == ["step 1\n"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to submit"),
        (["--working-dir", "nowhere", "--", "doctor"], "no folder nowhere"),
        (
            ["--runtime-env", "odd.yaml", "--", "doctor"],
            r"odd\.yaml does not parse \(while .*\); mend it there",
        ),
        (["--runtime-env", "list.yml", "--", "doctor"], r"list\.yml holds a list"),
    ],
)
def test_a_submission_of_nothing_is_refused(argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.yaml").write_text("pip: [")
    (tmp_path / "list.yml").write_text("- pip")
    with pytest.raises(ConfigError, match=words):
        submit_command.main(argv)
