"""The trajectory store: one Arrow IPC file per expert, in a folder named after everything that made it.

A file has the columns snapshot, epoch and theta (fixed-size list of float32, length params), is memory-mapped on
reading, and has its SHA-256 in a file beside it, written last: an expert is there once both are. The folder's name is
a hash of all expert settings and the dataset's fingerprint (but not of how many experts there are), so that different
settings can't mix and more experts of the same settings find the earlier ones.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ptm_ray.core.trajectory import Trajectory
from ptm_ray.errors import StoreError, readable
from ptm_ray.store import atomic
from ptm_ray.store.places import Place


@dataclass(frozen=True)
class TrajectoryStore:
    """The trajectories of one kind of expert. `identity` is what their folder's name hashes; `params` their length."""

    root: Place
    identity: Mapping[str, Any]
    params: int

    @property
    def key(self) -> str:
        """16 hex digits of the identity's SHA-256."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def place(self) -> Place:
        return self.root / self.key

    @property
    def folder(self) -> Path:
        """The place's folder, or its copy here."""
        return self.place.local

    def path(self, expert: int) -> Path:
        """The expert's Arrow file."""
        return self.folder / f"expert-{expert:04d}.arrow"

    def prepare(self, num_experts: int, num_snapshots: int) -> None:
        """Makes the folder and says inside it what it holds. Raises `StoreError` where disk or rights are missing."""
        missing = sum(not self.there(expert) for expert in range(num_experts))
        atomic.check_space(self.folder, missing * num_snapshots * self.params * 4, f"{missing} expert trajectories")
        about = self.folder / "identity.json"
        if not about.exists():
            atomic.write_text(about, json.dumps({**self.identity, "params": self.params}, indent=2, sort_keys=True))
        # Even if it is there: what can't be written is refused now.
        self.place.push(about.name)

    def there(self, expert: int) -> bool:
        """Whether the expert's file is there; brings it and its checksum here from elsewhere."""
        path = self.path(expert)
        with readable(self.place, StoreError):
            if not (path.exists() and _digest_path(path).exists()):
                self.place.pull(path.name, _digest_path(path).name)
            return path.exists()

    def write(self, trajectory: Trajectory) -> None:
        """Puts an expert's file in its place, then its checksum."""
        flat = pa.array(np.concatenate(trajectory.theta), type=pa.float32())
        columns = {
            "snapshot": pa.array(range(len(trajectory.theta)), type=pa.int32()),
            "epoch": pa.array(trajectory.epochs, type=pa.float64()),
            "theta": pa.FixedSizeListArray.from_arrays(flat, self.params),
        }
        about = {"ptm_ray": json.dumps({**self.identity, "expert": trajectory.expert})}
        table = pa.table(columns).replace_schema_metadata(about)
        path = self.path(trajectory.expert)
        with atomic.replacing(path) as temporary:
            with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            digest = _sha256(temporary)
        atomic.write_text(_digest_path(path), f"{digest}  {path.name}\n")
        self.place.push(path.name, _digest_path(path).name)

    def read(self, expert: int) -> Trajectory:
        """The expert's trajectory; its vectors are views of the mapped file.

        Raises `StoreError`, naming the file, where it is missing, cut short, changed or another architecture's.
        """
        path = self.path(expert)
        if not self.there(expert):
            raise StoreError(f"no {path.name} in {self.place}; train it by `ptm-ray experts`")
        if not _digest_path(path).exists():
            raise StoreError(f"{path} has no checksum beside it; it will be trained again")
        with readable(path, StoreError):
            known, found = _digest_path(path).read_text().split()[:1], _sha256(path)
        if known != [found]:
            raise StoreError(f"{path} does not have the checksum it was written with; it will be trained again")
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            epochs = tuple(table["epoch"].to_pylist())
            theta = table["theta"].combine_chunks()
            about = json.loads(table.schema.metadata[b"ptm_ray"])
        except (pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError) as error:
            raise StoreError(f"{path} is no expert trajectory ({error}); it will be trained again") from error
        expected = {**self.identity, "expert": expert}
        if theta.type.list_size != self.params or about != json.loads(json.dumps(expected)):
            raise StoreError(
                f"{path} holds another expert than asked for ({theta.type.list_size} parameters, here {self.params}); "
                "it comes from another network, dataset or setting: point --experts-dir elsewhere"
            )
        flat = theta.flatten().to_numpy(zero_copy_only=True).reshape(len(epochs), self.params)
        return Trajectory(expert, tuple(flat), epochs)

    def damaged(self, expert: int) -> str | None:
        """Why an expert's file can't be used although it is there; None where it is fine or simply missing."""
        if not self.there(expert):
            return None
        try:
            self.read(expert)
        except StoreError as error:
            return str(error)
        return None

    def missing(self, num_experts: int) -> list[int]:
        """Experts that are not there or can't be used."""
        return [e for e in range(num_experts) if not self.there(e) or self.damaged(e)]


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    about = path.stat()
    return _sha256_of(path, (about.st_ino, about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=1024)
def _sha256_of(path: Path, state: tuple[int, ...]) -> str:
    """Of a file as it was then: a trajectory that is read at every outer step is hashed once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
