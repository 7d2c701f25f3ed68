"""A cell of a benchmark: what is tested and scored, on which images and labels, by which recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptm_ray.config.suite import SuiteConfig
from ptm_ray.core.whitening import Whitening
from ptm_ray.stages import cell as stage
from ptm_ray.stages.given import GivenSet
from ptm_ray.stages.problem import Problem
from ptm_ray.store.checkpoints import RunFolder
from tests.small import SETTINGS, InMemory, small_dataset
from tests.stages.test_distill import ScriptedScorer, distillation

ASKED = {
    "name": "small",
    "datasets": ["small"],
    "ipc": [2],
    "methods": ["ptm", "datm", "herding", "full"],
    "equal_steps": 5,
    "extra_seeds": 1,
    "settings": {**SETTINGS, "outer_steps": 8},
}


def run(folder, method, seed=0, **changes):
    asked = SuiteConfig.of({**ASKED, **changes})
    (cell,) = (cell for cell in asked.cells() if cell.method == method and cell.seed == seed)
    problem = Problem(small_dataset(), asked.config(cell)).check()
    tested, cost = stage.run_cell(problem, InMemory(problem), RunFolder(folder), asked, cell)
    return problem, list(stage.scores(tested, cost, problem.dataset))


@pytest.fixture
def trained(monkeypatch):
    """(images, labels, recipe, seed) of every network that is tested, of the last set that it trains on."""
    seen = []
    whole = stage.Evaluator.test

    def noted(self, network, train_on, recipe, seeds):
        seen.extend((*train_on[-1], recipe, seed) for seed in seeds)
        return whole(self, network, train_on, recipe, seeds)

    monkeypatch.setattr(stage.Evaluator, "test", noted)
    return seen


def conditions(scores):
    return [(score["condition"], score["evaluation_seed"]) for score in scores]


def test_a_learned_set_is_scored_under_every_condition_that_it_can_have(tmp_path, trained):
    problem, scores = run(tmp_path, "ptm")
    assert conditions(scores) == [
        ("unified", 0),
        ("unified", 1),
        ("published", 0),
        ("no-augmentation", 0),
        ("equal-steps", 0),
    ]
    early, *unified, published, bare = trained
    for images, *_ in (*unified, published, bare):
        assert torch.equal(images, unified[0][0])
    assert not torch.equal(early[0], unified[0][0])
    recipes = [recipe for *_, recipe, _ in (early, *unified, published, bare)]
    assert [recipe.lr for recipe in recipes[:3]] == [problem.config.evaluation.lr] * 3
    assert recipes[3].lr not in (problem.config.evaluation.lr, recipes[0].lr)
    assert (recipes[3].decay_share, recipes[4].ops) == (0.5, ())
    assert recipes[0].ops


def test_after_equal_steps_the_set_is_tested_as_it_is_whatever_was_validated_last(tmp_path, trained):
    problem, _ = run(tmp_path, "ptm", conditions=["unified", "equal-steps"])
    again = stage.Distillation(
        problem, InMemory(problem), stage.InlineScorer(stage.Evaluator(problem)), RunFolder(tmp_path / "b")
    )
    list(again.run(stop_after=ASKED["equal_steps"]))
    early = trained[0][0]
    assert torch.equal(early, again.learner.result().images)
    assert not torch.equal(early, again.result().images)


def test_scores_say_what_they_cost_and_how_each_class_fares(tmp_path):
    _, scores = run(tmp_path, "ptm")
    for score in scores:
        assert score["outer_steps"] == 8
        assert score["distillation_s"] > 0
        assert score["peak_memory_bytes"] > 2**20
        assert len(score["recalls"]) == 3
        assert score["worst_recall"] == min(score["recalls"])
        assert score["balanced_accuracy"] == pytest.approx(sum(score["recalls"]) / 3)


def test_cycles_of_mitigation_are_counted(tmp_path):
    overlap = {"look_every": 2, "separate_steps": 1, "retrain_steps": 1, "threshold": 5.0}
    _, scores = run(tmp_path, "ptm", settings={**SETTINGS, "outer_steps": 12, "overlap": overlap})
    score = scores[0]
    assert score["cycles"] >= max(1, score["cycles_kept"])
    assert ("overlap_after" in score) == (score["cycles_kept"] > 0)


def test_soft_labels_have_hard_ones_and_a_twin_beside_them(tmp_path, trained):
    problem, scores = run(tmp_path, "datm")
    found = dict(zip([condition for condition, _ in conditions(scores)], [*trained[1:], trained[0]], strict=True))
    images, labels, *_ = found["unified"]
    assert not torch.equal(labels, labels.round())
    hard, twin = found["hard-labels"], found["twin"]
    assert torch.equal(hard[0], images)
    assert torch.equal(hard[1], torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2])])
    assert torch.equal(twin[1], labels)
    # Each of the twin's images is a real one of the class that its label is for.
    real, classes = problem.tensors("train")
    rows = [int((real == image).flatten(1).all(1).nonzero()[0]) for image in twin[0]]
    assert [int(classes[row]) for row in rows] == [0, 0, 1, 1, 2, 2]


def test_every_set_has_a_twin_of_its_own(tmp_path, trained):
    asked = {"seeds": 2, "conditions": ["unified", "twin"], "settings": {**SETTINGS, "outer_steps": 1}}
    for seed in (0, 1):
        run(tmp_path / str(seed), "datm", seed, **asked)
    _, _, (one, *_, first), _, _, (other, *_, second) = trained
    assert not torch.equal(one, other)
    # Its network is that of the set's own first one all the same.
    assert first == second == 0


def test_a_set_that_is_kept_as_it_began_has_no_inner_lr_to_be_published_at(tmp_path, monkeypatch):
    scorer = ScriptedScorer(0.9, 0.2)
    scorer.images = len(small_dataset().val)
    monkeypatch.setattr(stage, "InlineScorer", lambda evaluator: scorer)
    _, scores = run(tmp_path, "ptm", conditions=["unified", "published"])
    assert conditions(scores) == [("unified", 0), ("unified", 1)]
    assert scores[0]["outer_steps"] == 8


def test_images_as_they_are_have_nothing_learned_to_be_scored(tmp_path):
    _, scores = run(tmp_path, "herding")
    assert conditions(scores) == [("unified", 0), ("unified", 1), ("no-augmentation", 0)]
    assert {score["outer_steps"] for score in scores} == {0}


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_classes_that_are_matched_learn_no_inner_lr_to_be_published_at(tmp_path, method):
    _, scores = run(tmp_path, method, methods=[method], conditions=["unified", "published"])
    assert conditions(scores) == [("unified", 0), ("unified", 1)]
    assert {score["outer_steps"] for score in scores} == {8}


def test_subsets_are_published_one_after_another_and_unified_at_once(tmp_path, monkeypatch):
    seen = {}
    whole = stage.CellTesting._train

    def noted(self, condition, train_on, recipe, seeds=None):
        seen[condition] = train_on
        return whole(self, condition, train_on, recipe, seeds)

    monkeypatch.setattr(stage.CellTesting, "_train", noted)
    settings = {**SETTINGS, "schedule": {"kind": "random"}, "outer_steps": 4}
    run(tmp_path, "pdd", methods=["pdd"], settings=settings)
    ((images, labels),) = seen["unified"]
    first, both = seen["published"]
    # Two images of each of three classes, so two subsets.
    assert torch.equal(both[0], images)
    assert torch.equal(first[0], images[[0, 2, 4]])
    assert torch.equal(first[1], labels[[0, 2, 4]])


@pytest.mark.parametrize("method", ["pdd", "hoptm"])
def test_methods_that_are_paced_by_their_run_have_one_of_equal_steps_for_it(tmp_path, trained, method):
    settings = {**SETTINGS, "schedule": {"kind": "random"}, "outer_steps": 8}
    asked = {"methods": [method], "conditions": ["unified", "equal-steps"], "settings": settings}
    problem, scores = run(tmp_path / "cell", method, **asked)
    assert conditions(scores) == [("unified", 0), ("unified", 1), ("equal-steps", 0)]
    early = trained[-1][0]

    def after_equal_steps(outer_steps):
        config = problem.config.model_copy(update={"outer_steps": outer_steps})
        alone = distillation(replace(problem, config=config), tmp_path / str(outer_steps))
        list(alone.run(stop_after=ASKED["equal_steps"]))
        return alone.learner.result().images

    assert torch.equal(early, after_equal_steps(ASKED["equal_steps"]))
    assert not torch.equal(early, after_equal_steps(8))
    _, scores = run(tmp_path / "no number", method, **asked, equal_steps=None)
    assert {condition for condition, _ in conditions(scores)} == {"unified"}


def test_full_data_is_all_training_images_for_as_long_as_they_need(tmp_path, trained):
    problem, scores = run(tmp_path, "full")
    assert conditions(scores) == [("unified", 0), ("unified", 1), ("no-augmentation", 0)]
    for images, labels, recipe, _ in trained:
        assert len(images) == len(labels) == len(problem.dataset.train)
        assert recipe.steps == problem.config.evaluation.full_steps


def test_a_set_that_is_given_is_tested_as_it_is_under_every_condition_that_it_can_have(tmp_path, trained):
    asked = SuiteConfig.of({**ASKED, "methods": {"mine": {"sets": "{seed}"}}})
    (cell, _) = asked.cells()
    images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
    labels = np.random.default_rng(1).dirichlet(np.ones(3), 6).astype(np.float32)
    normalised = Whitening(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6]))
    given = GivenSet(images, labels, normalised, inner_lr=0.03)
    problem = given.problem(small_dataset(), asked.config(cell)).check()
    # Test images are seen as the set was made, not as this dataset's own statistics would have it.
    assert torch.equal(problem.tensors("test")[0], normalised.forward(torch.tensor(problem.dataset.test.images)))
    tested, _ = stage.run_cell(problem, None, RunFolder(tmp_path), asked, cell, given)
    expected = ["unified", "unified", "published", "hard-labels", "twin", "no-augmentation"]
    assert [one.condition for one in tested] == expected
    assert all(torch.equal(seen, torch.tensor(images)) for at, (seen, *_) in enumerate(trained) if at != 4)
    torch.testing.assert_close(trained[0][1], torch.tensor(labels))
    assert torch.equal(trained[3][1], torch.eye(3)[labels.argmax(1)])
    assert trained[2][2].lr == pytest.approx(0.03)


def test_conditions_that_are_not_asked_for_are_not_scored(tmp_path):
    _, scores = run(tmp_path, "datm", conditions=["unified", "twin"])
    assert {condition for condition, _ in conditions(scores)} == {"unified", "twin"}


def test_a_stopped_cell_goes_on_and_remembers_its_score_at_equal_steps(tmp_path, monkeypatch):
    _, whole = run(tmp_path / "whole", "ptm")

    class Stopped(Exception):
        pass

    def stop(self, made, *, learned):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(stage.CellTesting, "finished", stop)
        with pytest.raises(Stopped):
            run(tmp_path / "parts", "ptm")
    with np.load(tmp_path / "parts" / "equal-steps.npz") as held:
        assert held.files == ["convnet.0"]
    _, parts = run(tmp_path / "parts", "ptm")
    clocks = {"distillation_s", "peak_memory_bytes"}
    plain = [[{k: v for k, v in score.items() if k not in clocks} for score in scores] for scores in (whole, parts)]
    assert plain[0] == plain[1]
