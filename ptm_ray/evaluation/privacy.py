"""What something that was made from private images gives away about who they were: membership of canaries.

Canaries are images of which a fair coin decided, one by one, whether they were trained on. An attack gives each a
score, higher where it thinks that it was. How far scores of those that were in lie above the others' is what was given
away.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.generic]

#: Of intervals and bounds.
CONFIDENCE = 0.95
#: False positive rate at which the true positive rate is told.
FALSE_POSITIVES = 0.01
#: The bound is tried with so many canaries at either end of the scores, as shares of all: few where an attack is sure
#: of some, many where it is a little right about all.
GUESSED = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
#: Probabilities below this are taken for it, as networks round their own.
SMALLEST = 1e-12
#: Distance that is kept from the equation's trivial root.
TINY = 1e-9
#: Real images, at the most, whose distances say what is usual.
UNSEEN = 500
#: Real images whose distances are found at once.
AT_ONCE = 500


@dataclass(frozen=True)
class Membership:
    """What an attack tells about which of so many `canaries` were `members`.

    `auc`: the chance that it puts one that was in above one that was not, with its 95 % interval; 0.5 is a coin.
    `found`: share of those that were in that it names while naming at most `FALSE_POSITIVES` of the others. `epsilon`:
    whatever made the thing is, with 95 % confidence, not ε-differentially private for any ε below this; 0 says nothing
    at all. It bounds from below: another attack may find more.
    """

    canaries: int
    members: int
    auc: float
    auc_low: float
    auc_high: float
    found: float
    epsilon: float


def membership(scores: Floats, members: npt.NDArray[np.bool_]) -> Membership:
    """An attack's success, of a score and the truth for each canary. Raises ValueError where all or none were in."""
    inside, outside = scores[members], scores[~members]
    if not len(inside) or not len(outside):
        raise ValueError(f"{len(inside)} of {len(scores)} canaries were in; some must be, and some not")
    chance = auc(inside, outside)
    low, high = auc_interval(chance, len(inside), len(outside))
    return Membership(
        canaries=len(scores),
        members=int(members.sum()),
        auc=chance,
        auc_low=low,
        auc_high=high,
        found=true_positives(inside, outside),
        epsilon=epsilon_bound(scores, members),
    )


def auc(inside: Floats, outside: Floats) -> float:
    """The chance that a score of the first is above one of the second; equal ones count half. By Mann and Whitney."""
    # Here and not above: scipy takes a second to load.
    from scipy.stats import mannwhitneyu

    won = mannwhitneyu(inside, outside, method="asymptotic").statistic
    return float(won / (len(inside) * len(outside)))


def auc_interval(chance: float, inside: int, outside: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of an AUC that was found with so many scores of each kind.

    It leaves doubt at an AUC of 1 as well, where resampling would see none.
    Source: Newcombe 2006 (Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2),
    method 5: Hanley and McNeil's variance, taken at the limit that is asked for.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = norm.ppf(0.5 + confidence / 2)
    more = (inside + outside) / 2 - 1

    def beyond(limit: float) -> float:
        spread = 1 + more * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        return float((limit - chance) ** 2 - z**2 * limit * (1 - limit) * spread / (inside * outside))

    # The AUC itself, where it is 0 or 1, is a root as well, and not the one that is meant.
    low = brentq(beyond, 0.0, chance - TINY) if chance > TINY else 0.0
    high = brentq(beyond, chance + TINY, 1.0) if chance < 1 - TINY else 1.0
    return float(low), float(high)


def true_positives(inside: Floats, outside: Floats, false_positives: float = FALSE_POSITIVES) -> float:
    """Share of the first above a threshold that at most that share of the second is above.

    Source: Carlini et al. 2022 (2112.03570), who ask what an attack is sure of rather than how it does on average.
    """
    allowed = math.floor(false_positives * len(outside))
    threshold = np.sort(outside)[-1 - allowed]
    return float((inside > threshold).mean())


def epsilon_bound(scores: Floats, members: npt.NDArray[np.bool_], confidence: float = CONFIDENCE) -> float:
    """The largest ε that these scores refute, with that confidence; 0 where they refute none.

    Of ε-differential privacy, one run with independent fair coins: an attack that guesses r of them is right no more
    often than r coins that fall right with chance e^ε / (1 + e^ε). Those with the highest scores are guessed as in, as
    many with the lowest as not in, the others passed over; for several numbers of guesses, each at the confidence that
    makes all of them together hold.

    Source: Steinke, Nasr & Jagielski 2023 (Privacy auditing with one (1) training run, 2305.08846), theorem 2.1;
    several numbers of guesses by Bonferroni.
    """
    from scipy.stats import beta

    order = np.argsort(scores, kind="stable")
    best = 0.0
    for share in GUESSED:
        each = int(share * len(scores))
        if not each:
            continue
        right = int(members[order[-each:]].sum() + (~members[order[:each]]).sum())
        # Clopper and Pearson's lower limit; 0.5 is the chance where ε is 0.
        chance = beta.ppf((1 - confidence) / len(GUESSED), right, 2 * each - right + 1) if right else 0.0
        if chance > 0.5:
            best = max(best, math.log(chance / (1 - chance)))
    return best


def confidences(probabilities: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """How sure networks are of each image's label: log p − log(1 − p), mean over networks, (n,).

    `probabilities` (networks, n, classes); a network with some that are not finite has diverged and tells nothing.
    Source: Carlini et al. 2022: on this scale confidences are nearly normal.
    """
    sound = np.isfinite(probabilities).all((1, 2), keepdims=True)
    probabilities = np.where(sound, probabilities, 1 / probabilities.shape[2])
    own = labels[None, :, None] == np.arange(probabilities.shape[2])
    theirs = np.where(own, probabilities, 0).sum(2)
    # The sum of the others, where 1 − p would have lost what is left beside a p of nearly 1.
    others = np.where(own, 0, probabilities).sum(2)
    odds: Floats = np.log(theirs.clip(SMALLEST)) - np.log(others.clip(SMALLEST))
    each: Floats = odds.mean(0)
    return each


def beyond(scores: Floats, easy: Floats) -> Floats:
    """What of these scores a straight line through the `easy` ones does not explain, (n,): least squares' residual.

    So that it is taken off by as much as it counts, whatever the spread of either. The line knows of no coin, which
    leaves `epsilon_bound` as it is.
    """
    known = np.stack([np.ones_like(easy), easy], axis=1)
    explained: Floats = known @ np.linalg.lstsq(known, scores, rcond=None)[0]
    return scores - explained


def nearness(images: Pixels, made: Pixels) -> Floats:
    """How much nearer the nearest of `made` is to each image than those are on average: −min / mean of distances, (n,).

    Of pixels, (n, height, width, channels) and (m, …). Against the mean, so that a plain image, which lies near to
    everything, does not look like a copy.
    """
    distances = _distances(images, made)
    near: Floats = -distances.min(1) / distances.mean(1)
    return near


def copies(made: Pixels, trained_on: Pixels, unseen: Pixels) -> npt.NDArray[np.bool_]:
    """Which images of `made` lie nearer to one that was trained on than 99 of 100 unseen real images do, (m,).

    And all that are one to within a grey level. Of pixels from 0 to 255, as in `nearness`. This finds copies and no
    more: what is no copy may give away as much (2505.01524).
    """
    # The distance of images that differ by one level in every value.
    alike = math.sqrt(math.prod(made.shape[1:]))
    # Some of them say what is usual; all of a large dataset's would take minutes.
    usual = _nearest(unseen[:: math.ceil(len(unseen) / UNSEEN)], trained_on)
    # Of those that were trained on after all, as where patients stand in two splits, copies would look usual.
    usual = usual[usual > alike]
    near = np.quantile(usual, 0.01) if len(usual) else alike
    return np.asarray(_nearest(made, trained_on) <= near)


def _nearest(images: Pixels, among: Pixels) -> Floats:
    """Each image's distance to the nearest of the others, (n,); some at a time, as all may not fit into memory."""
    parts = (among[first : first + AT_ONCE] for first in range(0, len(among), AT_ONCE))
    nearest: Floats = np.min([_distances(images, part).min(1) for part in parts], axis=0)
    return nearest


def _distances(a: Pixels, b: Pixels) -> Floats:
    """Between all of one and all of the other, (n, m); as matrix products, exact for whole numbers."""
    a, b = (images.reshape(len(images), -1).astype(np.float64) for images in (a, b))
    squares: Floats = np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)
    distances: Floats = np.sqrt(squares.clip(0))
    return distances
