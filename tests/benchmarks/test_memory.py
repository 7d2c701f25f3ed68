"""What a matching step takes, as the operating system counts it."""

from benchmarks.memory import measured

SMALL = (1, 28, 2)
BUDGET_MIB = 512


def test_a_step_keeps_graphs_within_its_budget_and_not_beyond():
    before = measured(SMALL, 0)
    recomputing, within = (measured(SMALL, 24, budget) - before for budget in (0, BUDGET_MIB))
    assert recomputing + 100 < within < BUDGET_MIB
