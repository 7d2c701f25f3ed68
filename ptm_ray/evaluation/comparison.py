"""Is one method ahead of another, and by more than noise: paired differences, signed ranks, robustness scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ptm_ray.evaluation.protocol import summary

#: Signed ranks of fewer pairs can't reach 5 %: the smallest p is 2 · 2^-n, which is 6 % for five.
FEWEST_PAIRS = 6
#: Differences below this are rounding of sums, not of measurements.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % interval (NaN where one pair has none), and how the pairs went."""

    mean: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    @property
    def pairs(self) -> int:
        """Their number."""
        return self.wins + self.ties + self.losses


def paired_difference(more: Sequence[float], less: Sequence[float], tie: float = ROUNDING) -> Difference:
    """`more` minus `less`, pair by pair, in their unit; Student's interval of the mean over the pairs.

    A pair that differs by less than `tie` is neither won nor lost; its difference counts as it is in the mean.
    Raises ValueError for sequences of different length and for none at all.
    """
    if not more:
        raise ValueError("no pairs to compare")
    differences = [a - b for a, b in zip(more, less, strict=True)]
    over = summary(differences)
    wins, losses = sum(d >= tie for d in differences), sum(d <= -tie for d in differences)
    ties = len(differences) - wins - losses
    return Difference(over["mean"], over.get("low", math.nan), over.get("high", math.nan), wins, ties, losses)


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; None for fewer than `FEWEST_PAIRS` differences.

    Zeros are left out (Wilcoxon's own rule); p is 1 where nothing else is there. Exact for up to 50 without ties.
    Source: Wilcoxon 1945; scipy.stats.wilcoxon.
    """
    if len(differences) < FEWEST_PAIRS:
        return None
    # So that equal differences are ties, whatever order their terms were summed in.
    rounded = np.round(np.asarray(differences, dtype=float) / ROUNDING) * ROUNDING
    nonzero = rounded[rounded != 0]
    if not len(nonzero):
        return 1.0
    # Here and not above: scipy takes a second to load.
    from scipy.stats import wilcoxon

    return float(wilcoxon(nonzero).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The same names with p corrected for testing all of them; 5 % then bounds the chance of any false one.

    Source: Holm 1979: the k-th smallest of m times m − k + 1, never below the one before, at most 1.
    """
    corrected, before = {}, 0.0
    for k, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        before = max(before, min(1.0, (len(p_values) - k) * p_values[name]))
        corrected[name] = before
    return {name: corrected[name] for name in p_values}


def mean_ranks(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name → its mean rank over the places of the sequences, 1 for the highest score; equal ones share their ranks."""
    if not scores or not len(next(iter(scores.values()))):
        return {}
    from scipy.stats import rankdata

    ranks = rankdata(-np.round(np.array(list(scores.values())) / ROUNDING), axis=0)
    return dict(zip(scores, ranks.mean(axis=1).tolist(), strict=True))


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """How much the images themselves are worth, in [0, 1]; `robust_score` of weight · IOR − (1 − weight) · HLR.

    `hlr` (hard-label recovery): full data's accuracy minus the set's with hard labels; `ior` (improvement over random):
    the set's accuracy, with the labels it comes with, minus that of random real images trained in the same way. Both
    are fractions in [−1, 1]; percentages would push nearly every set to 0 or far beyond 1.

    Source: DD-Ranking.
    """
    return robust_score(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(gain_with: float, gain_without: float, weight: float = 0.5) -> float:
    """How little the gain over random real images needs augmentation, in [0, 1].

    `robust_score` of weight · gain with augmentation + (1 − weight) · gain without; gains are fractions in [−1, 1].

    Source: DD-Ranking.
    """
    return robust_score(weight * gain_with + (1 - weight) * gain_without)


def robust_score(a: float) -> float:
    """(eᵃ − e⁻¹) / (e − e⁻¹): 0 for −1, 1 for 1, 0.27 for 0. Raises ValueError beyond them."""
    if not -1 <= a <= 1:
        raise ValueError(f"a = {a:g} lies outside of [-1, 1]; gains are fractions, not percentages")
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
