"""What can go wrong, as one tree: everything the package raises on purpose is a `PtmError`.

Messages are whole sentences for the person at the terminal: what is wrong, with which value, and the way out.
Each class takes the message alone, so that all of them travel through pickle and so across Ray workers.
"""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class PtmError(Exception):
    """Base of all errors that the package raises on purpose."""


class ConfigError(PtmError):
    """Settings that are unknown, out of range or contradict each other."""


class DataError(PtmError):
    """Images, labels or files that can't be distilled as they are."""


class NotEnoughImages(DataError):
    """A class holds fewer real images than the settings ask for."""


class StoreError(PtmError):
    """A file or folder of a run that is damaged, foreign or can't be written."""


class DivergedError(PtmError):
    """An optimisation that left the finite numbers and could not be brought back."""


class WorkerFailed(PtmError):
    """A Ray worker that died or raised more often than it may."""


class Terminated(KeyboardInterrupt):
    """The process was told to end, by SIGTERM: a scheduler's time limit, `ray job stop`, `kill`."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand inside a message of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _short(lines[0])


@contextlib.contextmanager
def readable(what: object, kind: type[PtmError]) -> Iterator[None]:
    """Makes an error of that kind of what the system refuses meanwhile: a path without rights, a name too long."""
    try:
        yield
    except OSError as error:
        where = _short(str(error.filename or what))
        raise kind(f"{where} can't be read ({error.strerror or error}); check its name and your rights") from error


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"


def without_folders(text: str) -> str:
    """The text with paths cut to their last names, for reports that are handed on; a path ends at a space."""
    return re.sub(r"(?<![^\s'\"(])(~|\.{1,2})?/([^\s'\"():,;/]+/)*(?=[^\s/])", "", text)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest known names, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given.lower(), names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{hint}known: {', '.join(names)}"
