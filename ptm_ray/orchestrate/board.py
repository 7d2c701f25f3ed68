"""Where workers that match together show how far they are, in a process that loads neither torch nor Ray Train."""

from typing import Any


class Board:
    """Keeps what it is shown until it is fetched.

    Rows come as plain values: their own class would take it the import of torch, seconds and some 300 MB.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def show(self, row: dict[str, Any]) -> None:
        """A row is there."""
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        """All since the last call."""
        rows, self._rows = self._rows, []
        return rows
