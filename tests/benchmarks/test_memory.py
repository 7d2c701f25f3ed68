"""What a matching step takes, as the operating system counts it."""

from benchmarks.matching_step import Case, Runner
from benchmarks.memory import measured, peak_mib

SMALL = (1, 28, 2)
BUDGET_MIB = 512


def test_a_step_keeps_graphs_within_its_budget_and_not_beyond():
    before = measured(SMALL, 0)
    recomputing, within = (measured(SMALL, 24, budget) - before for budget in (0, BUDGET_MIB))
    assert recomputing + 100 < within < BUDGET_MIB


def test_what_a_way_held_before_its_first_step_is_its_own_whatever_started_it():
    large = bytearray(b"x") * 2**30
    del large
    peaks, before = {}, {}
    for way in ("plain", "plain-kept", "stored"):
        runner = Runner(way, Case(2, 1))
        _, peaks[way], before[way] = runner.ask()
        runner.stop()
    assert max(before.values()) < peak_mib() - 512
    # None holds anything of a step, not even of the one by which graphs are planned.
    assert max(before.values()) - min(before.values()) < 32
    assert all(peaks[way] > before[way] + 10 for way in peaks)
