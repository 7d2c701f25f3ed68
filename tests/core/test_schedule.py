"""Schedules start at end_min, never fall, end at end_max; the student's steps follow."""

import itertools

import pytest
import torch

from ptm_ray.core.schedule import (
    ByCount,
    ByProgress,
    GrowingWindow,
    Interleaved,
    RandomSegments,
    Segment,
    student_steps,
)

#: Outer steps over which what grows by count does.
GROWTH = 50


def ends(schedule, steps, loss):
    progress, found = schedule.begin(), []
    for outer_step in range(steps):
        segment = schedule.segment(progress, torch.Generator())
        found.append(segment.end)
        progress = schedule.advance(progress, segment, (outer_step + 1) / GROWTH, loss(outer_step))
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine", "stepped"])
def test_growth_by_count_starts_at_end_min_never_falls_and_ends_at_end_max(shape):
    found = ends(ByCount(2, 12, shape=shape), 80, lambda _: 1.0)
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


@pytest.mark.parametrize("start", [0, 2])
def test_progressive_segments_keep_their_start(start):
    for schedule in (ByCount(3, 9, start=start), ByProgress(3, 9, 0.5, 5, start=start)):
        progress = schedule.begin()
        for step in range(30):
            segment = schedule.segment(progress, torch.Generator())
            assert segment.start == start
            progress = schedule.advance(progress, segment, step / 10, 0.1)


def test_random_segments_have_one_length_and_reach_every_start():
    draw = torch.Generator().manual_seed(0)
    schedule = RandomSegments(start_max=4, length=2)
    segments = [schedule.segment(schedule.begin(), draw) for _ in range(200)]
    assert {s.start for s in segments} == {0, 1, 2, 3, 4}
    assert {s.length for s in segments} == {2}


def test_the_window_of_random_starts_widens_from_the_first_to_the_last_and_keeps_its_length():
    draw, schedule = torch.Generator().manual_seed(0), GrowingWindow(2, 6, length=3, start_min=1)
    progress, seen = schedule.begin(), []
    for outer_step in range(400):
        segment = schedule.segment(progress, draw)
        seen.append(segment.start)
        assert segment.length == 3
        # s ~ U{min … latest}, latest = first + (last − first) · grown.
        assert 1 <= segment.start <= 2 + round(4 * min(1, outer_step / 40))
        progress = schedule.advance(progress, segment, (outer_step + 1) / 40, 0.5)
    assert set(seen[:5]) == {1, 2}
    assert set(seen[40:]) == {1, 2, 3, 4, 5, 6}


def test_random_segments_start_no_earlier_than_told():
    draw = torch.Generator().manual_seed(0)
    schedule = RandomSegments(start_max=4, length=2, start_min=3)
    assert {schedule.segment(schedule.begin(), draw).start for _ in range(100)} == {3, 4}


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("kind", ["count", "progress"])
def test_interleaved_segments_leave_growth_to_the_progressive_ones(kind, start):
    if kind == "count":
        progressive = ByCount(3, 6, start=start)
    else:
        progressive = ByProgress(3, 6, threshold=0.5, patience=40, start=start)
    schedule, draw = Interleaved(progressive, RandomSegments(4, 2, start_min=1), share=0.25), torch.Generator()
    draw.manual_seed(0)
    progress, later, reached = schedule.begin(), [], []
    for step in range(400):
        segment = schedule.segment(progress, draw)
        after = schedule.advance(progress, segment, step / 400, 0.9)
        if segment == progressive.at(progress):
            assert after == progressive.advance(progress, segment, step / 400, 0.9)
            reached.append(segment.end)
        else:
            assert after == progress
            later.append(segment)
        progress = after
    assert len(later) == pytest.approx(100, abs=30)
    assert {s.start for s in later} == {1, 2, 3, 4}
    assert {s.length for s in later} == {2}
    assert reached[0] == 3
    assert reached[-1] == 6
    assert reached == sorted(reached)


def test_typical_segments_are_on_average_as_long_as_those_drawn():
    progressive = ByCount(3, 9, start=1)
    later = RandomSegments(7, 2, start_min=1)
    for schedule in (progressive, later, Interleaved(progressive, later, share=0.75)):
        draw, progress, lengths = torch.Generator().manual_seed(0), schedule.begin(), []
        for step in range(2000):
            segment = schedule.segment(progress, draw)
            progress = schedule.advance(progress, segment, step / 2000, 0.5)
            lengths.append(segment.length)
        told = schedule.typical()
        assert sum(share for share, _ in told) == pytest.approx(1)
        mean = sum(share * segment.length for share, segment in told)
        assert mean == pytest.approx(sum(lengths) / len(lengths), rel=0.03)


def test_the_usual_segment_is_half_way_among_the_short_ones_where_there_are_any():
    progressive, later = ByCount(3, 9, start=1), RandomSegments(6, 2, start_min=2)
    assert progressive.usual() == (1, 3)
    assert later.usual() == (4, 6)
    assert Interleaved(progressive, later, share=0.1).usual() == (4, 6)
    assert GrowingWindow(1, 6, 2, start_min=0).usual() == (3, 5)


def test_student_steps_follow_the_segment_within_their_bounds():
    assert [student_steps(Segment(0, end), 2.0, 4, 10) for end in (1, 2, 3, 4, 5, 6)] == [4, 4, 6, 8, 10, 10]
