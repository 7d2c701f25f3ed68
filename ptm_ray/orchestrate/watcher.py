"""Who is told how far a job is: bars of a terminal, or nobody."""

from typing import Protocol


class Watcher(Protocol):
    """Whoever wants to see progress: `done` of `total` in a stage, and a few words about now."""

    def update(self, stage: str, done: float, total: float, words: str = "") -> None:
        """Called whenever there is something new to show."""


class Nobody:
    """A watcher that looks away."""

    def update(self, stage: str, done: float, total: float, words: str = "") -> None:
        """Nothing is shown."""
