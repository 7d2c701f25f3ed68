"""A suite's cells in processes that share one GPU, on a machine that has torch but no Ray.

    python -m benchmarks.gpu_suite tune_configs/suites/local-gpu.toml --data-root DATA --out docs/bench/local-gpu

`ptm-ray bench --gpus-per-worker 0.2` does the same on a cluster: a cell here is the very function that it runs there.
Goes on where it was stopped. `--only` limits it to some methods, `--seconds` to the cells begun within them.
"""

import argparse
import math
import os
import statistics
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ptm_ray.config.suite import Cell, SuiteConfig, read_suite
from ptm_ray.core.trajectory import Vector
from ptm_ray.data.load import load_dataset
from ptm_ray.stages.cell import run_cell
from ptm_ray.stages.experts import ExpertTrainer, store_of
from ptm_ray.stages.problem import Problem
from ptm_ray.store.cells import CellTable
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

#: Experts that are trained side by side.
TOGETHER = 10


class FromFiles:
    """Trajectories as their files have them."""

    def __init__(self, problem: Problem, root: Path) -> None:
        store = store_of(problem, root)
        self._theta = [store.read(expert).theta for expert in range(problem.experts.count)]

    @property
    def num_experts(self) -> int:
        return len(self._theta)

    def vector(self, expert: int, snapshot: int) -> Vector:
        return self._theta[expert][snapshot]


def problem_of(asked: SuiteConfig, cell: Cell, data_root: Path, device: str) -> Problem:
    """A cell's."""
    config = asked.config(cell)
    return Problem(load_dataset(config.data, size=config.size, data_root=data_root), config).check().on(device)


def train(asked: SuiteConfig, cell: Cell, data_root: Path, device: str, root: Path) -> tuple[str, float]:
    """The experts that a cell wants and that are missing; their key, and seconds."""
    torch.set_num_threads(1)
    problem = problem_of(asked, cell, data_root, device)
    store = store_of(problem, root)
    missing, started = store.missing(problem.experts.count), time.monotonic()
    if missing:
        store.prepare(problem.experts.count, problem.experts.snapshots + 1)
        trainer = ExpertTrainer(problem)
        for first in range(0, len(missing), TOGETHER):
            for _ in trainer.train_into(store, missing[first : first + TOGETHER]):
                pass
    return store.key, time.monotonic() - started


def score(asked: SuiteConfig, cell: Cell, data_root: Path, device: str, root: Path, work: Path) -> list[dict[str, Any]]:
    """A cell's rows."""
    torch.set_num_threads(1)
    problem = problem_of(asked, cell, data_root, device)
    rows = run_cell(problem, FromFiles(problem, root), RunFolder(Place(work / cell.name)), asked, cell)
    experts = problem.experts
    params = problem.network().num_params
    return [{**row, "buffer_bytes": experts.count * (experts.snapshots + 1) * params * 4} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--experts-dir", type=Path, default=Path("experts"))
    parser.add_argument("--processes", type=int, default=min(6, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", help="methods, with commas between them")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no cell is begun later than this")
    asked = parser.parse_args()
    suite, started = read_suite(asked.suite), time.monotonic()
    table = CellTable(Place(asked.out))
    done = {(row["dataset"], row["ipc"], row["method"], row["seed"]) for row in table.rows if row["error"] is None}
    cells = (suite.only(asked.only.split(",")) if asked.only else suite).cells()
    waiting = [cell for cell in cells if (cell.dataset, cell.ipc, cell.method, cell.seed) not in done]
    where = asked.data_root, asked.device, asked.experts_dir
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
        keys = {cell: store_of(problem_of(suite, cell, *where[:2]), where[2]).key for cell in waiting}
        wanted = {key: cell for cell, key in keys.items()}
        for future in as_completed([pool.submit(train, suite, cell, *where) for cell in wanted.values()]):
            key, seconds = future.result()
            table.note_experts(key, seconds)
            print(f"experts {key}: {seconds:.1f} s", flush=True)
        running: dict[Future[list[dict[str, Any]]], Cell] = {}
        while waiting or running:
            while waiting and len(running) < asked.processes and time.monotonic() - started < asked.seconds:
                cell = waiting.pop(0)
                running[pool.submit(score, suite, cell, *where, asked.out / "work")] = cell
            if not running:
                break
            future = next(as_completed(running))
            cell = running.pop(future)
            named = {"suite": suite.name, "dataset": cell.dataset, "ipc": cell.ipc, "method": cell.method}
            about = {**named, "seed": cell.seed, "experts": keys[cell], "experts_s": table.experts_s(keys[cell])}
            try:
                rows = future.result()
            except Exception as error:
                traceback.print_exc()
                table.put([{**named, "seed": cell.seed, "error": " ".join(str(error).split())}])
                continue
            table.put({**about, **row} for row in rows)
            found = [row["balanced_accuracy"] for row in rows if row["condition"] == "unified"]
            took = f"{rows[0]['distillation_s']:.0f} s, {rows[0]['outer_steps']} steps"
            at = f"at {time.monotonic() - started:.0f} s"
            print(f"{cell.name}: {statistics.fmean(found):.3f}, {took}, {at}", flush=True)


if __name__ == "__main__":
    main()
