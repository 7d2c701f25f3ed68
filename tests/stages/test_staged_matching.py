"""SeqMatch and PDD: which images move in which stage, and what the experts of a stage have learned before."""

import itertools

import pytest
import torch

from ptm_ray.core.unroll import roll_out
from ptm_ray.stages import distill as stages_distill
from ptm_ray.stages import staged_matching
from ptm_ray.stages.staged_matching import subset_rows
from tests.small import InMemory, small_problem
from tests.stages.test_distill import distillation, without_clock

STAGED = {
    "ipc": 4,
    "outer_steps": 9,
    "schedule": {"kind": "random"},
    "subsets": {"train_steps": 2, "experts": 1},
}


def problem_of(method, **settings):
    return small_problem(**{**STAGED, "method": method, **settings})


def test_subsets_are_equal_parts_of_every_class():
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert [rows.tolist() for rows in subset_rows(classes, 2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [rows.tolist() for rows in subset_rows(classes, 3)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


def test_a_run_that_goes_on_in_a_later_stage_tries_its_set_as_often_as_before(tmp_path):
    problem = problem_of("seqmatch", evaluation={"validate_every": None})
    run = distillation(problem, tmp_path)
    pace = run.validate_every
    list(run.run(stop_after=7))
    assert len(run.matcher.lrs) == 2
    assert distillation(problem, tmp_path).validate_every == pace


def test_straight_lines_of_later_stages_end_where_experts_do(tmp_path):
    schedule = {**STAGED["schedule"], "path": "straight", "start_max": 0, "length": 1}
    run = distillation(problem_of("pdd", schedule=schedule), tmp_path)
    assert len(list(run.run())) == STAGED["outer_steps"]


@pytest.mark.parametrize("steps", [None, 2])
def test_subsets_have_equal_shares_of_the_run_or_the_steps_that_are_given(tmp_path, steps):
    run = distillation(problem_of("pdd", subsets={**STAGED["subsets"], "steps": steps}), tmp_path)
    stages = []
    for _ in range(STAGED["outer_steps"]):
        list(run.run(stop_after=1))
        stages.append(len(run.matcher.lrs))
    assert stages == ([0, 0, 0, 1, 1, 1, 2, 2, 2] if steps is None else [0, 0, 1, 1, 2, 2, 2, 2, 2])


def test_where_time_runs_out_sooner_it_is_time_that_subsets_share(tmp_path, monkeypatch):
    run = distillation(problem_of("pdd", outer_steps=100_000), tmp_path)
    seconds = itertools.count()
    monkeypatch.setattr(stages_distill.time, "monotonic", lambda: float(next(seconds)))
    stages = {len(run.matcher.lrs): row.elapsed_s for row in run.run(budget_s=run.elapsed_s + 60)}
    assert stages.keys() == {0, 1, 2}
    whole = stages[2]
    assert stages[0] < 0.4 * whole < 0.6 * whole < stages[1] < 0.75 * whole


def test_there_are_no_more_subsets_than_images_of_a_class():
    assert len(subset_rows(torch.tensor([0, 0, 1, 1]), 5)) == 2


@pytest.mark.parametrize("method", ["seqmatch", "pdd"])
def test_each_stage_moves_its_own_subset_and_students_see_all_so_far(tmp_path, method, monkeypatch):
    seen = []
    whole = staged_matching.TrajectoryMatching.update

    def noted(self, step):
        seen.append(set(torch.cat([batch.rows for _, batches in self._drawn for batch in batches]).tolist()))
        return whole(self, step)

    monkeypatch.setattr(staged_matching.TrajectoryMatching, "update", noted)
    run = distillation(problem_of(method, images={"soft_labels": True}), tmp_path)
    subsets = [set(rows.tolist()) for rows in run.matcher.subsets]
    now = run.learner.synthetic
    for step in range(9):
        before = now.images.clone(), now.label_logits.clone()
        list(run.run(stop_after=1))
        for rows, old in zip((now.images, now.label_logits), before, strict=True):
            changed = (rows != old).flatten(1).any(1)
            assert set(changed.nonzero().flatten().tolist()) == subsets[step // 3], step
        assert seen[step] == set().union(*subsets[: step // 3 + 1])


@pytest.mark.parametrize(("method", "rounds"), [("seqmatch", [[0], [0, 1]]), ("pdd", [[0, 1]])])
def test_experts_of_a_stage_begin_with_what_was_learned_before(tmp_path, method, rounds, monkeypatch):
    """Of the third: from an expert's own first weights, the earlier subsets as they are now, at their own inner lr."""
    trained = []
    whole = staged_matching.roll_out

    def noted(network, theta, images, labels, lr, batches):
        trained.append((theta, images, lr))
        return whole(network, theta, images, labels, lr, batches)

    problem = problem_of(method)
    source = InMemory(problem)
    run = distillation(problem, tmp_path, trajectories=source)
    list(run.run(stop_after=6))
    monkeypatch.setattr(staged_matching, "roll_out", noted)
    list(run.run(stop_after=1))
    now, subsets = run.learner.synthetic, run.matcher.subsets
    assert len(trained) == len(rounds)
    assert torch.equal(trained[0][0], torch.from_numpy(source.vector(0, 0)))
    for (_, images, lr), of in zip(trained, rounds, strict=True):
        assert torch.equal(images, now.images[torch.cat([subsets[number] for number in of])])
        assert lr == run.matcher.lrs[of[-1]]
    first = run.matcher.matching.trajectories.vector(0, 0)
    assert not torch.equal(torch.from_numpy(first), trained[-1][0])


def test_continued_experts_train_on_real_images_after_the_synthetic_ones(tmp_path):
    run = distillation(problem_of("pdd"), tmp_path)
    list(run.run(stop_after=4))
    experts = run.matcher.matching.trajectories
    images, labels = run.problem.tensors("train")
    network = run.problem.network()

    def loss(snapshot):
        theta = torch.from_numpy(experts.vector(0, snapshot))
        return float(torch.nn.functional.cross_entropy(network.logits(theta, images), labels))

    assert loss(5) < loss(0)
    assert experts.num_experts == 1
    # Nothing beyond the last snapshot that a segment can end at was trained.
    short = distillation(
        problem_of("pdd", schedule={"kind": "random", "start_max": 1, "length": 2}), tmp_path / "short"
    )
    list(short.run(stop_after=4))
    assert len(short.matcher.matching.trajectories._vectors[0]) == 4


@pytest.mark.parametrize("method", ["seqmatch", "pdd"])
@pytest.mark.parametrize("stops", [(1,), (3, 1, 2), (7,)])
def test_a_run_that_was_stopped_gives_the_same_images_bit_for_bit(tmp_path, method, stops):
    problem = problem_of(method)
    trajectories = InMemory(problem)
    whole = distillation(problem, tmp_path / "whole", trajectories=trajectories)
    list(whole.run())
    for stop in stops:
        list(distillation(problem, tmp_path / "parts", trajectories=trajectories).run(stop_after=stop))
    parts = distillation(problem, tmp_path / "parts", trajectories=trajectories)
    list(parts.run())
    assert torch.equal(whole.result().images, parts.result().images)
    assert without_clock(whole) == without_clock(parts)


def test_one_image_per_class_is_one_subset_and_so_mtt(tmp_path):
    """But for that, the same images: bit for bit."""
    staged = distillation(problem_of("pdd", ipc=1), tmp_path / "pdd")
    plain = distillation(problem_of("mtt", ipc=1, subsets={"count": 1}), tmp_path / "mtt")
    list(staged.run())
    list(plain.run())
    assert torch.equal(staged.result().images, plain.result().images)


def test_training_on_subsets_is_plain_sgd_on_them(tmp_path):
    run = distillation(problem_of("pdd"), tmp_path)
    at, now = run.matcher._at, run.learner.synthetic
    theta = at.network.init(torch.Generator().manual_seed(0))
    rows = run.matcher.subsets[1]
    draw = torch.Generator().manual_seed(1)
    ours = staged_matching.ContinuedExperts._trained(at, theta, rows, 0.1, draw)
    batches = staged_matching.inner_batches(len(rows), 32, 2, at.ops, torch.Generator().manual_seed(1))
    assert torch.equal(ours, roll_out(at.network, theta, now.images[rows], now.labels()[rows], 0.1, batches))
