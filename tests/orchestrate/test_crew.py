"""Workers that don't come, or die on their way."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from ptm_ray.errors import WorkerFailed
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


def test_where_no_worker_was_asked_for_none_is_missed(ray_cluster, monkeypatch, caplog):
    monkeypatch.setattr(crew, "NOTICE_S", 0.5)
    with crew.Crew(None, []):
        time.sleep(1.5)
    assert "no worker has started" not in caplog.text


@dataclass(frozen=True)
class Deadly:
    """A problem whose workers die as they start, so many of them."""

    folder: Path
    deaths: int

    def on(self, device):
        dead = len(list(self.folder.iterdir()))
        if dead < self.deaths:
            (self.folder / str(dead)).touch()
            os._exit(1)
        return self


def test_another_is_sent_for_where_one_dies_on_its_way_but_not_for_ever(ray_cluster, tmp_path):
    for deaths in (1, 99):
        folder = tmp_path / str(deaths)
        folder.mkdir()
        with crew.Crew(ray.put(Deadly(folder, deaths)), []) as there:
            there.send_for(1)
            if deaths == 1:
                assert ray.get(there.leader().process_id.remote())
            else:
                with pytest.raises(WorkerFailed, match=r"those sent for died on their way \(.+\); run the same"):
                    there.leader()
        assert len(list(folder.iterdir())) == min(deaths, crew.TRIES)
