"""Experts on a real cluster: in parallel, reused, gone on with, and trained again when their worker dies."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import ray
import ray.util.state
from ray.exceptions import ObjectLostError

from ptm_ray.errors import ConfigError
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.experts import fill_buffer
from ptm_ray.orchestrate.session import count_workers
from ptm_ray.stages.experts import ExpertTrainer
from ptm_ray.store.places import Place
from tests.small import small_problem

pytestmark = pytest.mark.usefixtures("ray_cluster")


def filled(problem, root, workers=2, watch=lambda done, wanted: None):
    with Crew(ray.put(problem), []) as crew:
        return fill_buffer(problem, crew, Place(root), watch, recruits=workers)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three experts, and the progress that was reported."""
    root, seen = tmp_path_factory.mktemp("experts"), []
    problem = small_problem(experts={"count": 3})
    buffer = filled(problem, root, watch=lambda done, wanted: seen.append((done, wanted)))
    return problem, root, buffer, seen


def test_experts_on_ray_are_those_trained_in_one_process(trained):
    problem, _, buffer, _ = trained
    trainer = ExpertTrainer(problem)
    for expert in range(3):
        for snapshot, vector in enumerate(trainer.snapshots(expert)):
            np.testing.assert_array_equal(buffer.vector(expert, snapshot), vector)


def test_whoever_wants_fewer_experts_matches_the_first_of_them(trained):
    buffer = trained[2]
    fewer = buffer.first(2)
    assert (fewer.num_experts, fewer.store) == (2, buffer.store)
    np.testing.assert_array_equal(fewer.vector(1, 3), buffer.vector(1, 3))


def test_progress_counts_training_steps_up_to_all_of_them(trained):
    problem, _, _, seen = trained
    done = [done for done, _ in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 3 * problem.experts.steps)
    assert {wanted for _, wanted in seen} == {3 * problem.experts.steps}
    assert len(done) == 1 + 3 * (problem.experts.snapshots + 1)


def test_snapshots_are_read_from_the_store_without_a_copy(trained):
    buffer = trained[2]
    assert not buffer.vector(0, 1).flags.owndata
    assert not buffer.vector(0, 1).flags.writeable


def test_the_same_settings_train_nothing_again_and_more_experts_only_those_missing(trained):
    problem, root, buffer, _ = trained
    files = {path: path.stat().st_mtime_ns for path in buffer.store.folder.glob("*.arrow")}
    more = small_problem(experts={"count": 4})
    seen = []
    again = filled(more, root, watch=lambda done, wanted: seen.append(wanted))
    assert set(seen) == {problem.experts.steps}
    assert {path: path.stat().st_mtime_ns for path in files} == files
    np.testing.assert_array_equal(again.vector(2, 5), buffer.vector(2, 5))


def test_a_damaged_expert_alone_is_trained_again(trained, caplog):
    problem, root, buffer, _ = trained
    path = buffer.store.path(1)
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    seen = []
    filled(problem, root, watch=lambda done, wanted: seen.append(wanted))
    assert set(seen) == {problem.experts.steps}
    assert path.read_bytes() == before
    assert "expert-0001" in caplog.text


def test_an_expert_whose_worker_is_killed_is_trained_again(tmp_path):
    problem = small_problem(experts={"count": 2, "steps": 200})
    crew = Crew.start(ray.put(problem), 2)
    victims = [ray.get(crew.members[0].process_id.remote())]

    def kill_once(done, wanted):
        if done and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    with crew:
        buffer = fill_buffer(problem, crew, Place(tmp_path), kill_once)
    assert buffer.store.missing(2) == []
    assert victims == []
    alone = list(ExpertTrainer(problem).snapshots(0))
    np.testing.assert_array_equal(buffer.vector(0, 5), alone[5])


def test_experts_side_by_side_are_those_trained_alone_also_when_their_worker_is_killed(trained, tmp_path, caplog):
    problem, _, buffer, _ = trained
    seen, crew = [], Crew.start(ray.put(problem), 2)
    victims = [ray.get(member.process_id.remote()) for member in crew.members[:1]]

    def watch(done, wanted):
        seen.append(done)
        if done and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    with crew:
        together = fill_buffer(problem, crew, Place(tmp_path), watch, side_by_side=2)
    assert together.store.missing(3) == []
    assert "training again" in caplog.text
    assert seen[-1] == 3 * problem.experts.steps
    for expert in range(3):
        for snapshot in range(problem.experts.snapshots + 1):
            np.testing.assert_array_equal(together.vector(expert, snapshot), buffer.vector(expert, snapshot))


def test_workers_have_started_before_they_are_ended(ray_cluster, monkeypatch):
    kill, states = ray.kill, []

    def noted(worker):
        found = ray.util.state.get_actor(worker._actor_id.hex(), address=ray_cluster["gcs_address"])
        states.append(found.state)
        kill(worker)

    monkeypatch.setattr(ray, "kill", noted)
    Crew.start(ray.put(small_problem()), 2).dismiss()
    assert states == ["ALIVE", "ALIVE"]


def test_those_who_are_on_their_way_are_ended_before_those_who_are_there():
    with Crew.start(ray.put(small_problem()), 2) as crew:
        staying = crew.members[1]
        crew.lost(crew.members[0])
        assert len(crew.arriving) == 1
        crew.dismiss(1)
        assert (crew.members, crew.arriving) == ([staying], [])
        assert ray.get(staying.process_id.remote())


class Owner:
    """Puts an object into the store and owns it until it dies."""

    def put(self, value):
        return [ray.put(value)]


def lost(ref):
    try:
        ray.get(ref)
    except ObjectLostError:
        return True
    return False


def test_an_object_that_was_lost_is_read_from_its_file(trained, wait_until):
    buffer = trained[2]
    owner = ray.remote(Owner).remote()
    (ref,) = ray.get(owner.put.remote(np.zeros(10**6, np.float32)))
    ray.kill(owner)
    damaged = dataclasses.replace(buffer, snapshots=((*buffer.snapshots[0][:3], ref, *buffer.snapshots[0][4:]),))
    wait_until(lambda: lost(ref), limit_s=60)
    np.testing.assert_array_equal(damaged.vector(0, 3), buffer.store.read(0).theta[3])


@pytest.mark.parametrize(
    ("asked", "gpus", "words"),
    [
        (None, 0.5, "1 workers with 0.5 of a GPU each asked for, but Ray has 0 GPUs; lower --gpus-per-worker"),
        (2, 1.0, "2 workers with 1 of a GPU each"),
        (None, -1.0, "must be 0 or more, got -1"),
        (None, 1.5, "must be whole above 1, got 1.5"),
        (3, 0.0, "3 workers asked for, but Ray has 2 CPUs"),
    ],
)
def test_workers_that_there_is_no_room_for_are_refused(ray_cluster, asked, gpus, words):
    with pytest.raises(ConfigError, match=words):
        count_workers(asked, gpus)
