"""Room for workers: what Ray has at once, and what a cluster whose nodes come and go has a little later."""

import pytest
import ray
from ray.autoscaler import sdk

from ptm_ray.errors import ConfigError
from ptm_ray.orchestrate import session


@pytest.fixture
def cluster(monkeypatch):
    """A cluster without nodes, to which one of a CPU and half a GPU comes at every third look while some are asked for.
    What was asked of its autoscaler, as often as it was.
    """
    asked, looks = [], []

    def resources():
        looks.append(bool(asked and asked[-1]))
        nodes = sum(looks) // 3
        return {"CPU": float(nodes), "GPU": nodes / 2}

    monkeypatch.setattr(ray, "cluster_resources", resources)
    monkeypatch.setattr(sdk, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(session, "LOOK_EVERY_S", 0.0)
    return asked


def test_a_cluster_that_grows_is_waited_for_and_not_held_to_what_was_asked(cluster, monkeypatch):
    monkeypatch.setenv(session.WAIT_FOR_NODES, "60")
    assert session.count_workers(4) == 4
    assert cluster == [[{"CPU": 1.0}] * 4, []]
    assert session.count_workers(4) == 4
    assert len(cluster) == 2


def test_shares_of_gpus_are_asked_for_with_the_cpus(cluster, monkeypatch):
    monkeypatch.setenv(session.WAIT_FOR_NODES, "60")
    assert session.count_workers(3, 0.25) == 3
    assert cluster == [[{"CPU": 1.0, "GPU": 0.25}] * 3, []]


def test_where_nothing_comes_in_time_it_is_refused_and_asked_for_no_longer(cluster, monkeypatch):
    monkeypatch.setenv(session.WAIT_FOR_NODES, "0.000001")
    with pytest.raises(ConfigError, match=r"4 workers asked for, but Ray has \d CPUs"):
        session.count_workers(4)
    assert cluster[-1] == []


def test_elsewhere_nobody_waits(cluster):
    with pytest.raises(ConfigError, match="4 workers asked for, but Ray has 0 CPUs"):
        session.count_workers(4)
    assert cluster == []
