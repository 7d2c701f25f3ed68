"""Experts in one process: snapshot 0 is the initialisation, every snapshot is a copy, seeds decide everything."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ptm_ray.config.base import merge
from ptm_ray.config.parts import CHOSEN_BY_EXPERTS
from ptm_ray.core.seeds import Seeds
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.experts import ExpertTrainer, kinds_wanted, store_of
from ptm_ray.stages.initial_set import CHOICES
from ptm_ray.stages.scoring import Evaluator, InlineScorer
from ptm_ray.store.checkpoints import RunFolder
from tests.small import small_problem


def test_snapshot_0_is_the_initialisation_and_all_snapshots_differ():
    problem = small_problem()
    vectors = list(ExpertTrainer(problem).snapshots(0))
    fresh = problem.network().init(Seeds(problem.experts.seed).stream("expert initialisation", 0))
    np.testing.assert_array_equal(vectors[0], fresh.numpy())
    assert len(vectors) == problem.experts.snapshots + 1
    for earlier, later in pairwise(vectors):
        assert not np.array_equal(earlier, later)


def test_an_expert_is_the_same_whoever_trained_before_it():
    problem = small_problem()
    trainer = ExpertTrainer(problem)
    list(trainer.snapshots(0))
    after_another, alone = list(trainer.snapshots(1)), list(ExpertTrainer(problem).snapshots(1))
    np.testing.assert_array_equal(after_another, alone)


def test_snapshots_come_as_they_are_made_and_the_file_when_the_last_one_is(tmp_path):
    problem = small_problem()
    store = store_of(problem, tmp_path)
    stream = ExpertTrainer(problem).train_into(store, [0])
    vectors = [next(stream)]
    assert store.missing(1) == [0]
    vectors.extend(stream)
    assert store.missing(1) == []
    read = store.read(0)
    np.testing.assert_array_equal(read.theta, vectors)
    assert read.epochs == problem.epochs()


def test_experts_learn():
    problem = small_problem(experts={"steps": 150})
    *_, last = ExpertTrainer(problem).snapshots(0)
    images, labels = problem.tensors("train")
    with torch.no_grad():
        right = (problem.network().logits(torch.from_numpy(last), images).argmax(1) == labels).float().mean()
    assert right > 0.6


def test_ftds_experts_start_as_mtts_take_another_way_and_are_kept_apart(tmp_path):
    problems = {method: small_problem(method=method, schedule={"kind": "random"}) for method in ("mtt", "ftd")}
    plain, flat = (list(ExpertTrainer(problem).snapshots(0)) for problem in problems.values())
    np.testing.assert_array_equal(plain[0], flat[0])
    assert not np.array_equal(plain[1], flat[1])
    assert store_of(problems["mtt"], tmp_path).key != store_of(problems["ftd"], tmp_path).key


def test_of_each_kind_of_expert_as_many_are_wanted_as_anybody_wants():
    counts = [{"count": 2}, {"count": 8}, {"count": 5}, {"count": 1, "lr": 0.02}]
    wanted = kinds_wanted(small_problem(experts=experts) for experts in counts)
    assert [problem.experts.count for problem in wanted.values()] == [8, 1]
    assert all(store_of(problem, "").key == key for key, problem in wanted.items())


def test_settings_know_which_first_images_an_expert_chooses():
    assert set(CHOSEN_BY_EXPERTS) == set(CHOICES)


@pytest.mark.parametrize(
    ("settings", "looks"),
    [
        ({"method": "random", "outer_steps": 0}, False),
        ({"method": "random-natural", "outer_steps": 0}, False),
        ({"method": "herding", "outer_steps": 0}, True),
        ({"method": "ptm", "images": {"init": "noise"}}, True),
        ({"method": "ncfm", "images": {"init": "noise"}}, True),
        ({"method": "dm", "images": {"init": "noise"}}, False),
        ({"method": "dm"}, True),
        ({"method": "random", "outer_steps": 0, "images": {"soft_labels": True, "label_init": "experts"}}, True),
    ],
    ids=str,
)
def test_a_run_has_experts_where_its_set_depends_on_them(tmp_path, settings, looks):
    problem = small_problem(**merge({"evaluation": {"validation_steps": 1}}, settings))

    def made_with(first):
        class Untrained:
            num_experts = problem.config.num_experts

            def vector(self, expert, snapshot):
                return problem.network().init(Seeds(first + expert).stream("any", snapshot)).numpy()

        run = Distillation(problem, Untrained(), InlineScorer(Evaluator(problem)), RunFolder(tmp_path / str(first)))
        list(run.run(stop_after=1))
        return run.learner.result()

    one, other = made_with(0), made_with(100)
    same = torch.equal(one.images, other.images) and torch.equal(one.labels(), other.labels())
    assert problem.config.num_experts == looks * problem.experts.count
    assert looks == (not same)
