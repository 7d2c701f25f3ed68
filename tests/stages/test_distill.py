"""The loop in one process: resumable bit for bit, keeping what validation tells it to, clear when it diverges."""

import itertools
import math

import numpy as np
import pytest
import torch

from ptm_ray.config.base import merge
from ptm_ray.config.presets import KINDS, METHODS, TRAJECTORY
from ptm_ray.core.schedule import Segment
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import ANYWHERE
from ptm_ray.core.teacher import one_hot_logits, taught_logits
from ptm_ray.errors import DivergedError
from ptm_ray.stages import trajectory_matching
from ptm_ray.stages.distill import Distillation
from ptm_ray.stages.initial_set import initial_set
from ptm_ray.stages.scoring import Evaluator, InlineScorer
from ptm_ray.stages.trajectory_matching import PASSES_OF_INNER_STEP
from ptm_ray.store.checkpoints import RunFolder
from tests.small import SETTINGS, InMemory, small_problem

EVERYTHING = {
    "ipc": 4,
    "images": {"soft_labels": True, "ema": 0.9},
    "overlap": {"threshold": 5.0, "look_every": 2, "separate_steps": 2, "retrain_steps": 2},
}


class ScriptedScorer:
    """Answers with the scores of a script, on every image alike: one a candidate, the last for all that follow."""

    images: int

    def __init__(self, *scores):
        self._script, self._asked = list(scores), []

    def submit(self, tag, candidate):
        score = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        self._asked.append((tag, torch.full((self.images,), score)))

    def collect(self, wait):
        asked, self._asked = self._asked, []
        return asked


def distillation(problem, folder, scorer=None, trajectories=None):
    scorer = scorer or InlineScorer(Evaluator(problem))
    scorer.images = len(problem.dataset.val)
    return Distillation(problem, trajectories or InMemory(problem), scorer, RunFolder(folder))


def without_clock(run):
    return [{key: value for key, value in vars(row).items() if key != "elapsed_s"} for row in run.rows]


#: Outer steps after which a run is stopped; the second way stops it in mid-cycle.
STOPS = ((1,), (4,), (3, 4, 2))
OTHERS = (
    {"method": "mtt"},
    {"method": "datm"},
    {"method": "mct"},
    {"method": "tesla"},
    {"method": "hoptm", "schedule": {"kind": "random"}, "matching": {"easy_every": 3}},
    {"schedule": {"later_share": 0.5}},
    {"images": {"optimiser": "sgd", "lr": 50.0}},
    {"student": {"precision": "bfloat16"}, "experts": {"precision": "bfloat16"}},
)


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        *(({}, stops) for stops in STOPS),
        *((EVERYTHING, stops) for stops in STOPS),
        *((settings, STOPS[-1]) for settings in OTHERS),
    ],
)
def test_a_run_that_was_stopped_gives_the_same_images_bit_for_bit(tmp_path, settings, stops):
    problem = small_problem(**settings)
    trajectories = InMemory(problem)
    whole = distillation(problem, tmp_path / "whole", trajectories=trajectories)
    list(whole.run())
    for stop in stops:
        list(distillation(problem, tmp_path / "parts", trajectories=trajectories).run(stop_after=stop))
    parts = distillation(problem, tmp_path / "parts", trajectories=trajectories)
    assert parts.step == sum(stops)
    list(parts.run())

    mine, other = whole.learner.state_dict(), parts.learner.state_dict()
    for name in ("images", "log_lr", "label_logits", "ema", "easy"):
        assert (mine[name] is None) == (other[name] is None)
        assert mine[name] is None or torch.equal(mine[name], other[name]), name
    assert torch.equal(whole.result().images, parts.result().images)
    assert without_clock(whole) == without_clock(parts)
    assert whole.cycles == parts.cycles
    assert whole.selection.scores == parts.selection.scores


def test_checkpoints_in_mid_cycle_are_among_those_resumed(tmp_path):
    problem = small_problem(**EVERYTHING)
    trajectories, scorer = InMemory(problem), ScriptedScorer(0.5)
    phases = [row.phase for row in distillation(problem, tmp_path / "whole", scorer, trajectories).run()]
    assert phases[:6] == ["match", "separate", "separate", "retrain", "retrain", "match"]
    resumed = []
    for stop in STOPS[-1]:
        run = distillation(problem, tmp_path / "parts", scorer, trajectories)
        list(run.run(stop_after=stop))
        again = distillation(problem, tmp_path / "parts", scorer, trajectories)
        assert again.matcher.phase == phases[again.step]
        assert torch.equal(again.matcher.mitigation.moving, run.matcher.mitigation.moving)
        resumed.append(str(again.matcher.phase))
    assert resumed == ["retrain", "separate", "retrain"]


def test_cycles_may_separate_without_retraining(tmp_path):
    settings = merge(EVERYTHING, {"overlap": {"retrain_steps": 0}})
    run = distillation(small_problem(**settings), tmp_path)
    assert [row.phase for row in run.run()][:4] == ["match", "separate", "separate", "match"]
    assert run.cycles
    assert run.matcher.mitigation.moving is None or run.matcher.phase == "separate"


def test_the_end_starts_at_end_min_never_falls_and_reaches_end_max(tmp_path):
    rows = list(distillation(small_problem(schedule={"start": 0, "end_min": 2, "end_max": 5}), tmp_path).run())
    ends = [row.end for row in rows]
    assert (ends[0], ends[-1]) == (2, 5)
    assert ends == sorted(ends)
    assert {row.start for row in rows} == {0}
    assert [row.student_steps for row in rows] == [min(4, max(2, end)) for end in ends]


def test_any_candidate_may_be_kept_the_first_included(tmp_path):
    problem = small_problem(overlap={"enabled": False})
    run = distillation(problem, tmp_path / "a", ScriptedScorer(0.9, 0.2, 0.8))
    start = run.learner.result()
    list(run.run())
    assert run.selection.kept.outer_step == 0
    assert torch.equal(run.result().images, start.images)

    run = distillation(problem, tmp_path / "b", ScriptedScorer(0.1, 0.2, 0.8, 0.3))
    list(run.run())
    assert run.selection.kept.outer_step == 8
    assert not torch.equal(run.result().images, run.learner.result().images)


@pytest.mark.parametrize(("later_share", "outer_steps"), [(0.0, 40), (0.9, 160)])
def test_scoring_takes_about_a_fifth_of_the_work_however_segments_are_mixed(tmp_path, later_share, outer_steps):
    schedule = {"start": 0, "end_min": 1, "length": 1, "growth": outer_steps, "later_share": later_share}
    student = {"steps_per_snapshot": 4.0, "steps_min": 2, "steps_max": 20, "batch_size": 6}
    evaluation = {"validate_every": None, "validation_steps": 100, "batch_size": 6}
    problem = small_problem(schedule=schedule, student=student, evaluation=evaluation, outer_steps=outer_steps)
    run = distillation(problem, tmp_path, ScriptedScorer(0.5))
    rows = list(run.run())
    assert len({row.student_steps for row in rows}) > 3
    settings = problem.config.evaluation
    scoring = 3 * settings.validation_steps * settings.validation_networks * (len(run.selection.scores) - 1)
    matching = PASSES_OF_INNER_STEP * sum(row.student_steps for row in rows)
    assert 0.15 < scoring / (scoring + matching) < 0.25


def test_a_cycle_that_leaves_validation_worse_is_undone(tmp_path):
    problem = small_problem(**EVERYTHING, evaluation={"validate_every": 100})
    # Candidates: the initial set, the one before the cycle, the one after it.
    run = distillation(problem, tmp_path, ScriptedScorer(0.5, 0.6, 0.4))
    steps = run.run()
    next(steps)
    before = run.learner.state_dict()
    for _ in range(4):
        next(steps)
    (cycle,) = run.cycles
    assert cycle.undone
    assert (cycle.validation_before, cycle.validation_after) == pytest.approx((0.6, 0.4))
    assert torch.equal(run.learner.synthetic.images, before["images"])
    assert torch.equal(run.learner.ema, before["ema"])
    assert torch.equal(run.result().images, before["ema"])


@pytest.mark.parametrize("undone", [True, False])
def test_a_cycle_that_is_undone_has_not_moved_the_schedule_on(tmp_path, undone):
    # An end that moves on at every outer step.
    schedule = {"start": 0, "end_min": 1, "later_share": 0, "patience": 1}
    problem = small_problem(**merge(EVERYTHING, {"schedule": schedule}), evaluation={"validate_every": 100})
    run = distillation(problem, tmp_path, ScriptedScorer(0.5, 0.6, 0.4 if undone else 0.7, 0.1))
    rows = list(run.run())
    assert run.cycles[0].undone == undone
    first = [row.phase for row in rows].index("separate")
    length = next(k for k, row in enumerate(rows[first:]) if row.phase == "match")
    before, after = rows[first].end, rows[first + length].end
    assert rows[first + 1].end > before
    assert (after == before) == undone


def test_after_a_cycle_that_was_undone_the_next_waits_twice_as_long(tmp_path):
    problem = small_problem(**EVERYTHING, evaluation={"validate_every": 100})
    run = distillation(problem, tmp_path, ScriptedScorer(0.5, 0.6, 0.4, 0.6, 0.4, 0.6))
    phases = "".join(row.phase[0] for row in run.run())
    assert phases == "mssrrmmmssrr"
    assert [cycle.undone for cycle in run.cycles] == [True, True]
    kept = distillation(problem, tmp_path / "kept", ScriptedScorer(0.5))
    assert "".join(row.phase[0] for row in kept.run()) == "mssrrmssrrms"


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)])
def test_a_population_exchanges_weights_that_turn_mitigation_on_or_off(tmp_path, weights):
    first, then = (
        small_problem(**merge(EVERYTHING, {"overlap": {"weight": weight}}), evaluation={"validate_every": 100})
        for weight in weights
    )
    list(distillation(first, tmp_path, ScriptedScorer(0.5)).run(stop_after=2))
    run = distillation(then, tmp_path, ScriptedScorer(0.5))
    assert run.step == 2
    list(run.run())
    assert bool(run.cycles) == (weights[1] > 0)
    assert ("separate" in {row.phase for row in run.rows[2:]}) == (weights[1] > 0)


def test_a_set_in_mid_cycle_is_no_candidate(tmp_path):
    settings = {**EVERYTHING, "overlap": {**EVERYTHING["overlap"], "separate_steps": 20}}
    run = distillation(small_problem(**settings), tmp_path, ScriptedScorer(0.5))
    assert "".join(row.phase[0] for row in run.run()) == "m" + "s" * 11
    # The initial set, and the one that the cycle began with, which is kept.
    assert [step for step, _ in run.selection.scores] == [0, 1]
    assert run.selection.kept.outer_step == 1


def test_a_cycle_that_validation_likes_is_kept_and_has_raised_the_overlap_ratio(tmp_path):
    settings = {**EVERYTHING, "overlap": {**EVERYTHING["overlap"], "weight": 1.0, "separate_steps": 5}}
    run = distillation(small_problem(**settings, outer_steps=9), tmp_path, ScriptedScorer(0.5))
    list(run.run())
    (cycle,) = run.cycles
    assert not cycle.undone
    assert cycle.overlap_after > cycle.overlap_before


def test_the_half_that_stands_still_stands_still(tmp_path):
    run = distillation(small_problem(**EVERYTHING), tmp_path, ScriptedScorer(0.5))
    steps = run.run()
    next(steps)
    now = run.learner.synthetic
    before = now.images.clone(), now.label_logits.clone()
    next(steps)
    moving = run.matcher.mitigation.moving
    for rows, old in zip((now.images, now.label_logits), before, strict=True):
        changed = (rows != old).flatten(1).any(1)
        assert changed[moving].all()
        assert int(changed.sum()) == len(moving) == len(old) // 2


def test_one_image_per_class_has_no_overlap_to_look_at(tmp_path):
    run = distillation(small_problem(ipc=1), tmp_path)
    assert {row.overlap for row in run.run()} == {None}
    assert run.matcher.mitigation is None


def test_a_student_that_always_explodes_stops_the_run_with_the_reason(tmp_path):
    problem = small_problem(student={"inner_lr": 1e30}, images={"max_skipped": 3})
    run = distillation(problem, tmp_path, ScriptedScorer(0.5))
    before = run.learner.synthetic.images.clone()
    with pytest.raises(DivergedError, match=r"3 updates in a row.*inner lr"):
        list(run.run())
    assert torch.equal(run.learner.synthetic.images, before)


def test_a_gate_that_lets_nothing_pass_ends_no_run(tmp_path):
    """DATM's: what it leaves out says nothing of the student."""
    images = {"max_skipped": 3, "skip_above": 1e-9, "explode_at": 1e9}
    run = distillation(small_problem(images=images, overlap={"enabled": False}), tmp_path, ScriptedScorer(0.5))
    before = float(run.learner.synthetic.log_lr)
    rows = list(run.run())
    assert len(rows) == SETTINGS["outer_steps"]
    assert all(row.skipped and not row.diverged for row in rows)
    assert float(run.learner.synthetic.log_lr) == before


def test_an_inner_lr_that_is_too_large_backs_off_and_the_run_goes_on(tmp_path):
    run = distillation(small_problem(student={"inner_lr": 1e3}, outer_steps=30), tmp_path, ScriptedScorer(0.5))
    rows = list(run.run())
    assert rows[0].skipped
    assert not rows[-1].skipped
    assert rows[-1].loss < 5


def test_time_that_is_left_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("ptm_ray.config.models.OUTER_STEPS", 2)
    run = distillation(small_problem(outer_steps=None), tmp_path, ScriptedScorer(0.5))
    assert len(list(run.run())) == 2
    assert sum(1 for _ in itertools.islice(run.run(budget_s=3600), 3)) == 3


def test_a_spent_budget_ends_the_run_before_another_step(tmp_path):
    problem = small_problem()
    run = distillation(problem, tmp_path, ScriptedScorer(0.5))
    list(run.run(stop_after=2))
    again = distillation(problem, tmp_path, ScriptedScorer(0.5))
    assert list(again.run(budget_s=again.elapsed_s)) == []
    assert again.step == 2


def test_noise_touches_no_image_and_real_images_are_training_images(tmp_path):
    real = distillation(small_problem(), tmp_path / "real", ScriptedScorer(0.5)).learner.synthetic
    noise = distillation(small_problem(images={"init": "noise"}), tmp_path / "noise", ScriptedScorer(0.5))
    train, labels = small_problem().tensors("train")
    for image, label in zip(real.images, real.classes, strict=True):
        assert (train[labels == label] == image).flatten(1).all(1).any()
    assert abs(float(noise.learner.synthetic.images.mean())) < 0.1
    assert not (train[:, None] == noise.learner.synthetic.images[None]).flatten(2).all(2).any()


@pytest.mark.parametrize("init", ["herding", "k-center", "k-means", "real", "real-correct", "real-natural", "noise"])
def test_without_outer_steps_the_first_images_are_handed_on_and_scored(tmp_path, init):
    problem = small_problem(images={"init": init}, outer_steps=0)
    run = distillation(problem, tmp_path, ScriptedScorer(0.5))
    first = run.learner.synthetic.images.clone()
    assert list(run.run()) == []
    assert torch.equal(run.result().images, first)
    assert run.selection.scores == [(0, 0.5)]
    again = distillation(problem, tmp_path, ScriptedScorer(0.9))
    assert list(again.run()) == []
    assert torch.equal(again.result().images, first)
    assert again.selection.scores == [(0, 0.5)]
    train, labels = problem.tensors("train")
    shown = zip(first, again.result().classes, strict=True)
    assert all((train[labels == k] == image).flatten(1).all(1).any() for image, k in shown) == (init != "noise")
    assert len(first) == problem.config.ipc * 3


def test_ways_to_choose_real_images_choose_others(tmp_path):
    trajectories = InMemory(small_problem())
    ways = ("herding", "k-center", "k-means", "real", "real-natural")
    firsts = []
    for init in ways:
        problem = small_problem(images={"init": init}, outer_steps=0)
        firsts.append(initial_set(problem, trajectories, Seeds(0)))
    assert all(not torch.equal(a.images, b.images) for a, b in itertools.combinations(firsts, 2))
    balanced, natural = [0, 0, 1, 1, 2, 2], firsts[-1].classes.tolist()
    assert all(first.classes.tolist() == balanced for first in firsts[:-1])
    assert natural != balanced


def test_images_stay_between_black_and_white_unless_told_otherwise(tmp_path):
    for in_range in (True, False):
        problem = small_problem(images={"lr": 1.0, "in_range": in_range})
        run = distillation(problem, tmp_path / str(in_range), ScriptedScorer(0.5))
        list(run.run())
        low, high = problem.whitening.bounds
        images = run.learner.synthetic.images
        assert bool(((images >= low) & (images <= high)).all()) is in_range


PACED = {
    "experts": {"count": 1, "steps": 16, "snapshots": 8, "spacing": 1.0},
    "schedule": {"start": 0, "end_min": 4, "end_max": 8, "later_share": 0.5, "length": 2},
    "student": {"steps_min": 4, "steps_max": 8},
}


def test_a_segment_has_the_pace_of_what_an_inner_step_of_it_covers_against_a_later_one(tmp_path):
    run = distillation(small_problem(**PACED), tmp_path / "run")
    assert run.matcher.segments.pace(Segment(3, 5)) == 1
    assert run.matcher.segments.pace(Segment(0, 4)) == 2
    assert run.matcher.segments.pace(Segment(0, 8)) == 2
    denser_early = {**PACED, "experts": {**PACED["experts"], "spacing": 2.0}}
    run = distillation(small_problem(**denser_early), tmp_path / "denser")
    # Snapshots at 0, 1, 2, 3, 4, 6, 9, 12, 16. Half way, 3 steps of the expert in 4 of the student.
    paces = [run.matcher.segments.pace(Segment(*ends)) for ends in ((3, 5), (0, 4), (4, 6), (0, 8))]
    assert paces == pytest.approx([1, 4 / 3, 5 / 3, 8 / 3])
    only_progressive = {**PACED, "schedule": {**PACED["schedule"], "later_share": 0.0}}
    run = distillation(small_problem(**only_progressive), tmp_path / "progressive")
    assert run.matcher.segments.pace(Segment(0, 4)) == 1


def test_the_inner_lr_is_that_of_later_segments_whatever_it_was_searched_on(tmp_path, monkeypatch):
    searched = []

    def search(network, synthetic, segments, batches, guess):
        searched.append((segments, len(batches), guess))
        return 0.3

    monkeypatch.setattr(trajectory_matching, "search_inner_lr", search)
    run = distillation(small_problem(**PACED), tmp_path / "run")
    assert float(run.learner.synthetic.log_lr.exp()) == pytest.approx(0.15)
    ((segments, steps, guess),) = searched
    # Snapshots 0 to 4: eight steps of the expert, of half an inner step each.
    experts = run.problem.config.experts
    assert (steps, guess) == (4, pytest.approx(2 * experts.lr / (1 - experts.momentum)))
    for start, target in segments:
        assert np.array_equal(start, run.matcher.trajectories.vector(0, 0))
        assert np.array_equal(target, run.matcher.trajectories.vector(0, 4))


def test_the_inner_lr_is_learned_by_position_along_the_trajectory_and_apart_for_progressive_segments(tmp_path):
    run = distillation(small_problem(**PACED), tmp_path / "run")
    assert run.matcher.segments.position(Segment(0, 4), run.matcher.progress) == (0, 1)
    places = [run.matcher.segments.position(Segment(k, k + 2), run.matcher.progress) for k in (0, 4, 6)]
    assert [place.along for place in places] == [-1, 0, 0.5]
    alike = distillation(small_problem(schedule={"start": 0}), tmp_path / "alike")
    assert alike.matcher.segments.position(Segment(0, 1), alike.matcher.progress) == ANYWHERE
    list(run.run())
    assert {(row.start, row.end) == (0, 4) for row in run.rows} == {True, False}
    assert all(float(tilt) for tilt in run.learner.synthetic.tilts)
    assert [len(set(one.inner_lrs().values())) for one in (run.learner.synthetic, run.result())] == [3, 3]
    student = {**PACED["student"], "inner_lr_by_segment": False}
    one = distillation(small_problem(**{**PACED, "student": student}), tmp_path / "one")
    list(one.run())
    assert len(set(one.result().inner_lrs().values())) == 1


def test_datm_begins_with_images_and_labels_of_the_experts_and_widens_its_range_of_starts(tmp_path):
    problem = small_problem(method="datm", schedule={"kind": "window", "growth": 6, "start_first": 0}, outer_steps=30)
    trajectories = InMemory(problem)
    run = distillation(problem, tmp_path / "run", trajectories=trajectories)
    now, (images, labels) = run.learner.synthetic, problem.tensors("train")
    for image, label in zip(now.images, now.classes, strict=True):
        assert any(torch.equal(image, real) for real in images[labels == label])
    last = [torch.from_numpy(trajectories.vector(expert, 5).copy()) for expert in range(2)]
    classes = problem.dataset.num_classes
    expected = taught_logits(problem.network(), last, now.images, now.classes, classes)
    assert torch.equal(now.label_logits, expected)
    assert not torch.equal(expected, one_hot_logits(now.classes, classes))
    list(run.run())
    assert {row.end - row.start for row in run.rows} == {2}
    assert run.rows[0].start == 0
    assert {row.start for row in run.rows} == {0, 1, 2, 3}
    assert not torch.equal(run.learner.synthetic.label_logits, expected)


def test_the_range_of_datm_widens_over_a_tenth_of_the_run_however_long_it_is(tmp_path):
    for outer_steps in (20, 60):
        schedule = {"kind": "window", "growth": None, "start_first": 0}
        problem = small_problem(method="datm", schedule=schedule, outer_steps=outer_steps)
        run = distillation(problem, tmp_path / str(outer_steps), ScriptedScorer(0.5))
        latest = []
        for _ in run.run():
            latest.append(run.matcher.progress.end - 2)
        widest = latest.index(3)
        assert latest[widest:] == [3] * (outer_steps - widest)
        assert outer_steps / 10 - 1 <= widest <= outer_steps / 10 + 1


@pytest.mark.parametrize("method", [method for method in METHODS if KINDS[method] == TRAJECTORY])
def test_tesla_alone_is_learned_by_the_approximate_gradient(tmp_path, method, monkeypatch):
    seen, finder = [], trajectory_matching.finder

    def noting(network, device):
        find = finder(network, device)

        def noted(*given, exact, **others):
            seen.append(exact)
            return find(*given, exact=exact, **others)

        return noted

    monkeypatch.setattr(trajectory_matching, "finder", noting)
    problem = small_problem(method=method, schedule={"kind": "random"}, outer_steps=1)
    assert len(list(distillation(problem, tmp_path, ScriptedScorer(0.5)).run())) == 1
    assert seen == [method != "tesla"]


def test_mct_matches_random_segments_of_the_straight_line(tmp_path):
    problem = small_problem(method="mct", schedule={"kind": "random"})
    trajectories = InMemory(problem)
    run = distillation(problem, tmp_path / "run", trajectories=trajectories)
    first, last = (trajectories.vector(1, k).astype(float) for k in (0, 5))
    shares = []
    for snapshot in range(6):
        found = run.matcher.trajectories.vector(1, snapshot)
        share = float((found - first) @ (last - first) / ((last - first) @ (last - first)))
        np.testing.assert_allclose(found, first + share * (last - first), atol=1e-6)
        shares.append(share)
    way = [np.linalg.norm(trajectories.vector(1, k + 1).astype(float) - trajectories.vector(1, k)) for k in range(5)]
    np.testing.assert_allclose(shares, np.cumsum([0, *way]) / np.sum(way), atol=1e-5)
    list(run.run())
    assert {row.end - row.start for row in run.rows} == {2}


HOPTM = {"method": "hoptm", "schedule": {"kind": "random"}}


def test_hoptm_counts_more_and_more_parameters(tmp_path):
    run = distillation(small_problem(**HOPTM, matching={"easy_every": 2, "easy_growth": 4.0}), tmp_path)
    masks = []
    for row in run.run():
        assert not row.skipped
        masks.append(run.learner.easy)
    assert all(bool((later >= earlier).all()) for earlier, later in itertools.pairwise(masks))
    assert 0 < masks[0].sum() < masks[-1].sum() <= len(masks[0])


def test_each_part_of_hoptm_alone_changes_what_is_learned(tmp_path):
    problem = small_problem(**HOPTM)
    trajectories, found = InMemory(problem), []
    for base, weight in ((0.0, 0.0), (1e-3, 0.0), (0.0, 0.5), (1e-3, 0.5)):
        problem = small_problem(**HOPTM, matching={"easy_base": base, "shape_weight": weight}, outer_steps=2)
        run = distillation(problem, tmp_path / f"{base}-{weight}", ScriptedScorer(0.5), trajectories)
        list(run.run())
        assert (run.learner.easy is not None) == (base > 0)
        found.append(run.learner.synthetic.images)
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(found, 2))


def test_the_way_is_compared_half_way_in_snapshots_after_the_students_part_of_the_experts_steps(tmp_path):
    experts = {"count": 1, "steps": 16, "snapshots": 8, "spacing": 2.0}
    student = {"steps_min": 8, "steps_max": 8}
    run = distillation(small_problem(**HOPTM, experts=experts, student=student), tmp_path)
    # Snapshots at 0, 1, 2, 3, 4, 6, 9, 12, 16.
    shapes = [
        run.matcher.segments.shape(Segment(*ends), lambda k: torch.tensor([k])) for ends in ((0, 2), (4, 6), (0, 5))
    ]
    assert [(int(shape.middle), shape.after) for shape in shapes] == [(1, 4), (5, 3), (2, 3)]
    assert {shape.weight for shape in shapes} == {0.5}
    assert run.matcher.segments.shape(Segment(3, 4), lambda k: torch.tensor([k])) is None
    plain = distillation(small_problem(method="ftd", experts=experts), tmp_path / "ftd")
    assert plain.matcher.segments.shape(Segment(0, 2), lambda k: torch.tensor([k])) is None


def test_random_segments_on_even_snapshots_have_one_pace(tmp_path):
    run = distillation(small_problem(schedule={"kind": "random"}), tmp_path / "run")
    last = run.problem.config.experts.snapshots
    length = run.problem.config.schedule.length
    assert {run.matcher.segments.pace(Segment(start, start + length)) for start in range(last - length + 1)} == {1.0}


def test_the_first_inner_lr_is_searched_around_the_experts_way_spread_over_the_students_steps(tmp_path):
    run = distillation(small_problem(**PACED), tmp_path / "run")
    # 8 steps of the expert in 4 of the student, at the expert's rate, or that times a power of two.
    guess = run.problem.experts.lr * 8 / 4
    ratios = [float(run.learner.synthetic.log_lr.exp()) / (guess * 2.0**-k) for k in range(-1, 5)]
    assert min(abs(ratio - 1) for ratio in ratios) < 1e-5


def test_progressive_segments_begin_where_experts_know_what_the_initial_set_teaches(tmp_path):
    settings = {"experts": {"count": 4, "steps": 40, "snapshots": 8}, "schedule": {"end_min": None, "length": 2}}
    problem = small_problem(**settings)
    trajectories = InMemory(problem)
    images, labels = problem.tensors("val")
    network = problem.network()

    def known_by_experts(snapshot):
        """For each class, the share of three experts that know each of its images."""
        thetas = [torch.tensor(trajectories.vector(expert, snapshot)) for expert in range(3)]
        right = [(network.logits(theta, images).argmax(1) == labels).numpy() for theta in thetas]
        return [np.mean(right, 0)[labels.numpy() == label] for label in np.unique(labels)]

    def surely_less(snapshot, score):
        leads = [score - share for share in known_by_experts(snapshot)]
        error = math.sqrt(sum(lead.var(ddof=1) / len(lead) for lead in leads)) / len(leads)
        return np.mean([lead.mean() for lead in leads]) > 2 * error

    found = {}
    for score in (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        run = distillation(problem, tmp_path / f"{score}", ScriptedScorer(score), trajectories)
        found[score] = run.matcher.segments.start
        assert run.matcher.segments.start == next((k - 1 for k in range(1, 7) if not surely_less(k, score)), 6)
    assert (found[0.0], found[1.0]) == (0, 6)
    assert len(set(found.values())) > 2
    first = next(distillation(problem, tmp_path / "0.6", ScriptedScorer(0.6), trajectories).run())
    assert (first.start, first.end) == (found[0.6], -(-(found[0.6] + 8) // 2))


@pytest.mark.parametrize("settings", [{"schedule": {"start": 0}}, {"images": {"init": "noise"}}])
def test_segments_begin_at_the_initialisation_where_asked_to_and_from_noise(tmp_path, settings):
    run = distillation(small_problem(**settings), tmp_path, ScriptedScorer(1.0))
    assert {row.start for row in run.run()} == {0}
