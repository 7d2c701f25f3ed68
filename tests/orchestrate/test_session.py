"""Room for workers: what Ray has at once, and what a cluster whose nodes come and go has a little later."""

import pytest
import ray
from ray.autoscaler import sdk

from ptm_ray.errors import ConfigError
from ptm_ray.orchestrate import session


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.fixture
def cluster(monkeypatch):
    """A cluster without nodes, to which one of a CPU and a GPU comes at every third look while some are asked for.
    What was asked of its autoscaler, as often as it was.
    """
    asked, looks = [], []

    def nodes():
        looks.append(bool(asked and asked[-1]))
        return [node(CPU=1.0, GPU=1.0)] * (sum(looks) // 3)

    monkeypatch.setattr(ray, "nodes", nodes)
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


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([node(CPU=16.0, GPU=2.0)], {0.0: 16, 1.0: 2, 0.5: 4, 0.1: 16, 2.0: 1}),
        # Of two shares of 0.6, none is in what others leave; of 0.3, three are on a GPU.
        ([node(CPU=16.0, GPU=2.0)], {0.6: 2, 0.3: 6}),
        ([node(CPU=1.0, GPU=4.0), node(CPU=8.0)], {0.0: 9, 0.25: 1, 1.0: 1}),
        ([node(CPU=4.0, GPU=1.0)] * 3, {0.4: 6, 1.0: 3}),
        ([node(CPU=2.0, GPU=3.0), node(CPU=2.0, GPU=1.0)], {2.0: 1}),
        ([node(CPU=2.0, GPU=1.0), node(alive=False, CPU=2.0, GPU=1.0)], {0.0: 2, 0.5: 2}),
    ],
)
def test_as_many_workers_as_nodes_and_their_gpus_have_room_for(monkeypatch, nodes, room):
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert {gpus: session.count_workers(None, gpus) for gpus in room} == room
