"""The table of a benchmark: one row for every network that was trained and scored, in one Parquet file."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ptm_ray.errors import StoreError
from ptm_ray.store import atomic
from ptm_ray.store.places import Place

#: Names of the table, and of what experts took, in a benchmark's folder.
TABLE, EXPERTS = "cells.parquet", "experts.json"
SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("dataset", pa.string()),
        ("ipc", pa.int32()),
        ("method", pa.string()),
        ("seed", pa.int32()),
        ("condition", pa.string()),
        ("network", pa.string()),
        ("evaluation_seed", pa.int32()),
        ("accuracy", pa.float64()),
        ("balanced_accuracy", pa.float64()),
        ("macro_f1", pa.float64()),
        ("auc", pa.float64()),
        ("calibration_error", pa.float64()),
        ("diverged", pa.float64()),
        ("worst_recall", pa.float64()),
        ("recalls", pa.list_(pa.float64())),
        ("experts_s", pa.float64()),
        ("distillation_s", pa.float64()),
        ("outer_steps", pa.int32()),
        ("cycles", pa.int32()),
        ("cycles_kept", pa.int32()),
        ("overlap_before", pa.float64()),
        ("overlap_after", pa.float64()),
        ("peak_memory_bytes", pa.int64()),
        ("buffer_bytes", pa.int64()),
        ("experts", pa.string()),
        ("fingerprint", pa.string()),
        ("code", pa.string()),
        ("processor", pa.string()),
        ("error", pa.string()),
    ]
)
Row = dict[str, Any]
#: Names a cell.
Key = tuple[str, int, str, int]


class CellTable:
    """The rows of a benchmark's cells, and the file that they are kept in.

    A cell's rows all have its `fingerprint`, of whatever it was asked for. `code` is a digest of the package that made
    them and `processor` what it ran on, so that nobody need guess which rows are of the same: both are None in tables
    of before. A failed cell has one row with an `error` and no score. `overlap_before` and `overlap_after` are means
    over the cycles of mitigation that were kept.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._experts = self._read_experts()
        self._rows = self._read()

    @property
    def rows(self) -> list[Row]:
        """All rows, cell by cell."""
        return [row for rows in self._rows.values() for row in rows]

    def done(self, key: Key, fingerprint: str | None) -> bool:
        """Whether a cell was finished as it is asked for now; without a `fingerprint`, in any way."""
        rows = self._rows.get(key, [])
        return bool(rows) and all(fingerprint in (None, row["fingerprint"]) and row["error"] is None for row in rows)

    def put(self, rows: Iterable[Row]) -> None:
        """A cell's rows, in place of those it had; on disk when this returns."""
        rows = [{name: row.get(name) for name in SCHEMA.names} for row in rows]
        # Another call may have put its cells there meanwhile.
        self._rows = {**self._read(), key_of(rows[0]): rows}
        path = self._place.local / TABLE
        with atomic.replacing(path) as temporary:
            pq.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA), temporary)
        self._place.push(TABLE)

    def note_experts(self, experts: str, count: int, seconds: float) -> None:
        """Remembers what training so many more of these experts took, for cells that find them there."""
        self._experts = self._read_experts()
        held = self._experts.get(experts)
        if isinstance(held, dict):
            count, seconds = count + int(held["count"]), seconds + held["seconds"]
        self._experts[experts] = {"count": count, "seconds": seconds}
        atomic.write_text(self._place.local / EXPERTS, json.dumps(self._experts, indent=1))
        self._place.push(EXPERTS)

    def experts_s(self, experts: str, count: int) -> float | None:
        """Seconds that training so many of these experts took, if it was done for this table: one is like another."""
        held = self._experts.get(experts)
        if isinstance(held, dict):
            return held["seconds"] * count / held["count"]
        # Earlier tables have the seconds alone, of as many as every cell had.
        return held

    def _read_experts(self) -> dict[str, float | dict[str, float]]:
        found: dict[str, float | dict[str, float]] = json.loads(self._place.read(EXPERTS) or "{}")
        return found

    def _read(self) -> dict[Key, list[Row]]:
        if not self._place.has(TABLE):
            return {}
        try:
            rows: list[Row] = pq.read_table(self._place.local / TABLE, schema=SCHEMA).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"{self._place / TABLE} is no table of a benchmark ({error}); move it away") from None
        cells: dict[Key, list[Row]] = {}
        for row in rows:
            cells.setdefault(key_of(row), []).append(row)
        return cells


def key_of(row: Row) -> Key:
    """The cell that a row is of."""
    return row["dataset"], row["ipc"], row["method"], row["seed"]
