"""Where runs and experts are kept: a folder of this machine, or one at a URL such as s3://bucket/runs.

What lies at a URL is worked on in a copy here, by the same code as any folder, and files are carried over whole: a
reader elsewhere sees a file as it was before or as it is now. Carried by pyarrow's filesystems, which Ray uses too; an
endpoint other than Amazon's stands in the URL's query: s3://bucket/runs?endpoint_override=HOST:PORT&scheme=http.
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from ptm_ray.errors import StoreError, first_line, readable
from ptm_ray.store import atomic


def cache() -> Path:
    """The user's folder for what can be made again: PTM_RAY_CACHE, else the system's."""
    own = os.environ.get("PTM_RAY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptm-ray"


@dataclass(frozen=True)
class Place:
    """A folder that lasts. `local` is the folder itself, or the copy here of what lies at `url`."""

    local: Path
    url: str | None = None

    @classmethod
    def of(cls, where: "str | Path | Place") -> "Place":
        """The place that a path or a URL names."""
        if isinstance(where, Place):
            return where
        if isinstance(where, Path) or "://" not in where:
            return cls(Path(where).expanduser())
        return cls(cache() / "copies" / hashlib.sha256(where.encode()).hexdigest()[:16], where)

    def __str__(self) -> str:
        """As it may be shown: a URL can hold a key."""
        if self.url is None:
            return str(self.local)
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __truediv__(self, name: str) -> "Place":
        """A folder below this one."""
        if self.url is None:
            return Place(self.local / name)
        parts = urlsplit(self.url)
        return Place(self.local / name, parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl())

    @property
    def shown(self) -> Path | str:
        """What says where it is: the path, or the URL without what must not be shown."""
        return self.local if self.url is None else str(self)

    @cached_property
    def _filesystem(self) -> tuple[fs.FileSystem, str]:
        with self._answering("reached"):
            filesystem, path = fs.FileSystem.from_uri(self.url)
        return filesystem, path.rstrip("/")

    def absolute(self) -> "Place":
        """The same for a process that works in another folder."""
        return Place(self.local.absolute(), self.url)

    def for_ray(self) -> tuple[str, fs.FileSystem | None]:
        """Storage path and filesystem as Ray's run configurations take them."""
        if self.url is None:
            return str(self.local.absolute()), None
        filesystem, path = self._filesystem
        return path, filesystem

    def is_empty(self) -> bool:
        """Whether nothing lies there; so is a folder that is not there."""
        if self.url is None:
            with readable(self, StoreError):
                return not self.local.is_dir() or not any(self.local.iterdir())
        filesystem, path = self._filesystem
        with self._answering("read"):
            return not filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))

    def has(self, name: str) -> bool:
        """Whether this file is there; it is then here too."""
        self.pull(name)
        with readable(self, StoreError):
            return (self.local / name).is_file()

    def read(self, name: str) -> bytes | None:
        """What this file holds; None where it is not there."""
        if not self.has(name):
            return None
        with readable(self, StoreError):
            return (self.local / name).read_bytes()

    def pull(self, *names: str) -> None:
        """Brings those of these files here that are there; a copy here of one that isn't is removed."""
        if self.url is None:
            return
        filesystem, path = self._filesystem
        with self._answering("read"):
            there = filesystem.get_file_info([f"{path}/{name}" for name in names])
            for name, info in zip(names, there, strict=True):
                target = self.local / name
                if info.type != fs.FileType.File:
                    target.unlink(missing_ok=True)
                    continue
                with (
                    filesystem.open_input_file(info.path) as reader,
                    atomic.replacing(target) as temporary,
                    temporary.open("wb") as writer,
                ):
                    writer.writelines(self._blocks(reader))

    def push(self, *names: str) -> None:
        """Carries these files over, in this order."""
        if self.url is None:
            return
        filesystem, path = self._filesystem
        with self._answering("written"):
            for name in names:
                # Beside its place first: what is interrupted is closed, which makes a file of the half that was sent.
                part = f"{path}/{name}.{uuid.uuid4().hex}.part"
                try:
                    with (self.local / name).open("rb") as reader, filesystem.open_output_stream(part) as writer:
                        shutil.copyfileobj(reader, writer)
                    filesystem.move(part, f"{path}/{name}")
                except BaseException:
                    with contextlib.suppress(OSError, pa.ArrowException):
                        filesystem.delete_file(part)
                    raise

    def forget(self) -> None:
        """Removes the copy here of what lies at a URL; a folder of this machine is no copy and stays."""
        if self.url is not None:
            shutil.rmtree(self.local, ignore_errors=True)

    def remove(self) -> None:
        """Everything there, if anything is, and its copy here."""
        shutil.rmtree(self.local, ignore_errors=True)
        if self.url is not None:
            filesystem, path = self._filesystem
            with self._answering("written"), contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(path)

    def _blocks(self, reader: Any) -> Iterator[bytes]:
        """All that a file there holds. That it can't be read is no fault of the disk that it is written to."""
        while True:
            with self._answering("read"):
                block = reader.read(2**20)
            if not block:
                return
            yield block

    @contextlib.contextmanager
    def _answering(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = first_line(error).replace(urlsplit(self.url or "").netloc, "…")
            message = (
                f"{self} can't be {verb} ({reason}); check its name, your rights and credentials, and the endpoint"
            )
            # Not `from error`, which may hold the key.
            raise StoreError(message) from None
