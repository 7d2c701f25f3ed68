"""What the parts of the speed benchmark share: the network's width, what images are shown through, and turns."""

import statistics
from collections.abc import Callable, Mapping

WIDTH = 128
OPS = ("scale", "rotate", "crop", "cutout", "brightness", "contrast")
ROUNDS = 3
#: The published way as it was published, and with the allocator settings of ours.
PLAIN, PLAIN_KEPT = "plain", "plain-kept"


def in_turns(ways: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Medians of what every way measures, all of them asked again and again, one after the other."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, measured in ways.items():
            taken[way].append(measured())
    return {way: statistics.median(values) for way, values in taken.items()}
