"""Progress on standard error, tables and the last line on standard output."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ptm_ray.report.audit import HEAD, attack_rows
from ptm_ray.report.card import started_from
from ptm_ray.report.tables import COLUMNS, score_rows

#: Seconds between two lines of progress where standard error is no terminal.
QUIET_EVERY_S = 15.0


class Bars:
    """A bar for every stage on a terminal; a line now and then in a log file.

    Meanwhile standard output, which is for results, is standard error: Ray prints there what befalls its tasks.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<11}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}
        self._waiting: list[str] = []
        logging.basicConfig(
            level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=self._console, show_path=False)]
        )
        logging.getLogger("ptm_ray").setLevel(logging.INFO)

    def __enter__(self) -> Self:
        self._aside = contextlib.redirect_stdout(sys.stderr)
        self._aside.__enter__()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._say_what_waits()
        self._progress.stop()
        self._aside.__exit__(kind, error, trace)

    def update(self, stage: str, done: float, total: float, words: str = "") -> None:
        """Moves a stage's bar to `done` of `total`."""
        self._say_what_waits()
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(stage, words="")
            self._progress.update(self._tasks[stage], completed=done, total=total, words=words)
            return
        now = time.monotonic()
        if now - self._told.get(stage, float("-inf")) >= QUIET_EVERY_S or done >= total:
            self._told[stage] = now
            print(f"{stage}: {100 * done / max(total, 1e-9):.0f} % ({words})", file=sys.stderr, flush=True)

    def say(self, words: str) -> None:
        """A line above the bars, once there is one: what is refused before that is to be the only line."""
        self._waiting.append(words)

    def _say_what_waits(self) -> None:
        for words in self._waiting:
            # As they are: a class may be called [red].
            self._console.print(words, highlight=False, markup=False, soft_wrap=True)
        self._waiting.clear()


def scores_table(scores: dict[str, Any], title: str) -> None:
    """The scores, in percent, on standard output."""
    _print_table(title, ["trained on", *COLUMNS.values()], score_rows(scores))


def audit_table(findings: dict[str, Any], title: str) -> None:
    """What every attack found, on standard output."""
    _print_table(title, HEAD, attack_rows(findings), words=3)


def say_how_it_began(recipe: dict[str, Any]) -> None:
    """What a set's images were started from, on standard error, for whoever is about to hand them on."""
    began = started_from(recipe["initialisation"], recipe["outer_step"])
    print(began.replace("**", "").replace("`", ""), file=sys.stderr)


def _print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
    """The first columns are `words`, and to the left; the others numbers."""
    table = Table(title=title)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < words else "right")
    for row in rows:
        table.add_row(*row)
    # Wide enough where output goes to a file: a table broken over lines can't be read or parsed.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def last_line(result: dict[str, Any]) -> None:
    """One JSON object, for machines."""
    print(json.dumps(result))
