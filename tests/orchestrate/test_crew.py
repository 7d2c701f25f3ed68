"""Workers that don't come."""

import time

import pytest
import ray

from ptm_ray.orchestrate import crew


class Member:
    """A worker that answers, or one that waits for CPUs which nobody has."""

    def __init__(self, there):
        self._there = there

    @property
    def process_id(self):
        return ray.remote(num_cpus=0 if self._there else 99)(lambda: 1)


@pytest.mark.parametrize("there", [True, False])
def test_a_job_that_waits_for_others_to_leave_says_so(ray_cluster, monkeypatch, caplog, wait_until, there):
    monkeypatch.setattr(crew, "NOTICE_S", 2.0)
    waiting = crew.Crew(None, [Member(there)])
    if there:
        time.sleep(3)
        assert "no worker has started" not in caplog.text
    else:
        wait_until(lambda: "no worker has started in 2 s, 2 CPUs are free" in caplog.text, 20)
    for answer in waiting._answers.values():
        ray.cancel(answer)
