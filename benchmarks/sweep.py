"""What a sweep costs beside its trials' own work: eight trials on two cores, experts there before.

    python -m benchmarks.sweep

Overhead is wall time over the trials' work spread evenly over the cores, less one. The trials' work is their
distillations' own wall time; starting Ray, Tune's bookkeeping, checkpoints, and the best set's export with its
evaluation on the test split are what is beside it.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import ptm_ray as ptm

CORES = 2
TRIALS = 8
SETTINGS: dict[str, Any] = {"data": "cellphantom", "ipc": 2, "outer_steps": 120, "experts": {"count": 4, "steps": 200}}


class FirstReport:
    """A watcher that notes when a trial was first heard of, and when all had ended."""

    def __init__(self) -> None:
        self.started, self.began = time.perf_counter(), time.time()
        self.first: float | None = None
        self.last: float | None = None

    def update(self, stage: str, done: float, total: float, words: str = "") -> None:
        if stage == "trials":
            self.first = self.first or time.perf_counter() - self.started
            self.last = time.perf_counter() - self.started


def first_work(sweep: Path) -> float:
    """When the first trial began to distil, in seconds of the clock: its first report, less what it had worked."""
    firsts = [json.loads(path.open().readline()) for path in sweep.glob("tune/trials/trial-*/result.json")]
    return min(first["timestamp"] - first["distillation_s"] for first in firsts)


def main() -> None:
    asked = {"searcher": "grid", "settings": SETTINGS, "space": {"seed": list(range(TRIALS))}}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ptm.train_experts(experts_dir=root / "experts", workers=CORES, **SETTINGS)
        watcher = FirstReport()
        ptm.sweep(asked, out=root / "sweep", experts_dir=root / "experts", workers=CORES, watcher=watcher)
        wall = time.perf_counter() - watcher.started
        rows = pq.read_table(root / "sweep" / "trials.parquet").to_pylist()
        started = first_work(root / "sweep")
    ideal = sum(row["distillation_s"] for row in rows) / CORES
    found = {
        "trials": len(rows),
        "cores": CORES,
        "work_s": round(ideal * CORES, 1),
        "wall_s": round(wall, 1),
        "first_iteration_s": round(started - watcher.began, 1),
        "first_report_s": round(watcher.first or 0.0, 1),
        "overhead_of_the_trials": round((watcher.last or wall) / ideal - 1, 3),
        "overhead_of_the_whole_sweep": round(wall / ideal - 1, 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
