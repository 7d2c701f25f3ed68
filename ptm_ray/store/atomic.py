"""Files that are there whole or not at all: written beside their place, then renamed."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptm_ray.errors import StoreError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; what is written there takes the place of `path` at the end.

    After an error nothing is left behind and `path` is as it was. Raises `StoreError` where it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(_reason(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The text as a whole file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises `StoreError` where the disk below `folder` can't hold what is about to be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.part"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StoreError(_reason(folder, error)) from error
    if free < needed_bytes:
        raise StoreError(
            f"no disk space left in {folder} for {what}: {needed_bytes / 2**20:,.0f} MiB needed, "
            f"{free / 2**20:,.0f} MiB free; free some or choose another folder"
        )


def _reason(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"no disk space left to write {path}; free some, nothing was lost"
    return f"{path} can't be written ({error.strerror or error}); choose another folder"
