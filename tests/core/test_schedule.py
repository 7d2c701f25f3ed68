"""Schedules start at end_min, never fall, end at end_max; the student's steps follow."""

import itertools

import pytest
import torch

from ptm_ray.core.schedule import ByCount, ByProgress, RandomSegments, Segment, student_steps


def ends(schedule, steps, loss):
    progress, found = schedule.begin(), []
    for outer_step in range(steps):
        found.append(schedule.segment(progress, torch.Generator()).end)
        progress = schedule.advance(progress, outer_step, loss(outer_step))
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine", "stepped"])
def test_growth_by_count_starts_at_end_min_never_falls_and_ends_at_end_max(shape):
    found = ends(ByCount(2, 12, growth=50, shape=shape), 80, lambda _: 1.0)
    assert found[0] == 2
    assert found[-1] == 12
    assert found[50:] == [12] * 30
    assert all(a <= b for a, b in itertools.pairwise(found))


def test_growth_by_progress_waits_for_the_student():
    schedule = ByProgress(1, 6, threshold=0.5, patience=1000)
    assert ends(schedule, 50, lambda _: 0.9) == [1] * 50
    learned = ends(schedule, 50, lambda step: 0.9 if step < 20 else 0.1)
    assert learned[:20] == [1] * 20
    assert learned[-1] == 6
    assert all(a <= b for a, b in itertools.pairwise(learned))


def test_growth_by_progress_moves_on_when_patience_ends():
    assert ends(ByProgress(1, 3, threshold=0.5, patience=4), 12, lambda _: 2.0) == [1] * 4 + [2] * 4 + [3] * 4


def test_progressive_segments_start_at_the_initialisation():
    for schedule in (ByCount(1, 9, 10), ByProgress(1, 9, 0.5, 5)):
        progress = schedule.begin()
        for step in range(30):
            assert schedule.segment(progress, torch.Generator()).start == 0
            progress = schedule.advance(progress, step, 0.1)


def test_random_segments_have_one_length_and_reach_every_start():
    draw = torch.Generator().manual_seed(0)
    schedule = RandomSegments(start_max=4, length=2)
    segments = [schedule.segment(schedule.begin(), draw) for _ in range(200)]
    assert {s.start for s in segments} == {0, 1, 2, 3, 4}
    assert {s.length for s in segments} == {2}


def test_student_steps_follow_the_segment_within_their_bounds():
    assert [student_steps(Segment(0, end), 2.0, 4, 10) for end in (1, 2, 3, 4, 5, 6)] == [4, 4, 6, 8, 10, 10]
