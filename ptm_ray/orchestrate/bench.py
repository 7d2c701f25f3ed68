"""Benchmarks on Ray: experts once for all that share them, then one cell on every CPU."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ptm_ray import __version__
from ptm_ray.config import DistillConfig
from ptm_ray.config.suite import Cell, SuiteConfig
from ptm_ray.data import MedicalDataset, load_dataset
from ptm_ray.errors import DataError, PtmError, StoreError, without_folders
from ptm_ray.evaluation import metrics
from ptm_ray.orchestrate.buffer import TrajectoryBuffer
from ptm_ray.orchestrate.experts import experts_alone
from ptm_ray.orchestrate.session import connected, count_workers
from ptm_ray.orchestrate.watcher import Nobody, Watcher
from ptm_ray.orchestrate.workers import device_with
from ptm_ray.stages.cell import Cost, Tested, run_cell, scores
from ptm_ray.stages.experts import kinds_wanted, store_of
from ptm_ray.stages.given import GivenSet, as_given, find_set
from ptm_ray.stages.memory import keep_memory
from ptm_ray.stages.problem import Problem
from ptm_ray.store.cells import TABLE, CellTable, Key
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.places import Place

log = logging.getLogger(__name__)

#: Folder, below a benchmark's own, of what its cells are working on.
WORK = "work"


@dataclass(frozen=True)
class BenchResult:
    """Where table and report lie, how many cells there are, and how many of them failed."""

    table: Path | str
    report: Path | str
    cells: int
    failed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values: the last line of `ptm-ray bench --json`."""
        return {"table": str(self.table), "report": str(self.report), "cells": self.cells, "failed": self.failed}


@dataclass(frozen=True)
class _Task:
    """A cell that is to be run: its problem, and the key of the experts that it shares."""

    cell: Cell
    problem: Problem
    experts: str
    fingerprint: str
    given: GivenSet | None


def bench(
    asked: SuiteConfig,
    out: Place,
    *,
    experts_root: Place,
    data_root: str | Path | None = None,
    only: Sequence[str] = (),
    workers: int | None = None,
    gpus: float = 0.0,
    watcher: Watcher | None = None,
) -> BenchResult:
    """Every cell of a suite, its tidy table, tables for people and pictures, into `out`.

    `only`: methods to run now, where not all of them; the report is of all that is there. `gpus`: each worker's share
    of one.

    An `out` that holds this suite is gone on with: a cell is run again only where it failed or its settings, images or
    protocol have changed. A cell that fails is a row with its error; the others go on. Raises `PtmError` of some kind
    for a suite that can't be, before any expert trains.
    """
    watcher, out = watcher or Nobody(), out.absolute()
    asked.check()
    RunFolder(out).claim({"suite": asked.name})
    table = CellTable(out)
    runner = _Runner(asked, out, table, experts_root.absolute(), watcher, gpus)
    cells = (asked.only(only) if only else asked).cells()
    try:
        todo = list(runner.tasks(cells, data_root))
        if todo:
            with connected(workers):
                runner.run(todo, count_workers(workers, gpus))
    finally:
        if table.rows:
            out.push(*_report(asked, out, table, runner.outdated()))
    wanted = {cell.key for cell in cells}
    return BenchResult((out / TABLE).shown, (out / "results.md").shown, len(wanted), len(runner.failed))


def _report(asked: SuiteConfig, out: Place, table: CellTable, outdated: Sequence[Cell]) -> tuple[str, ...]:
    # Cells import this file, but draw no pictures.
    from ptm_ray.report.bench import write_bench

    cells = asked.cells()
    first = {cell.method: asked.config(cell) for cell in reversed(cells)}
    return write_bench(
        out.local,
        table.rows,
        asked.kinds(),
        networks=next(iter(first.values())).evaluation.networks,
        soft_labels=[method for method, config in first.items() if config.images.soft_labels],
        without_experts=[method for method, config in first.items() if not config.num_experts],
        wanted=[_wanted(cell) for cell in cells],
        outdated=[_wanted(cell) for cell in outdated],
    )


def _wanted(cell: Cell) -> tuple[str, str, int, int]:
    return cell.method, cell.dataset, cell.ipc, cell.seed


def fingerprint(
    asked: SuiteConfig, config: DistillConfig, dataset: MedicalDataset, given: GivenSet | None = None
) -> str:
    """Of whatever decides a cell's result: 16 hex digits.

    Settings at their defaults are told by the version, so that a table outlives a setting that is added.
    """
    protocol = asked.model_dump(mode="json", include={"budget_minutes", "equal_steps", "conditions", "extra_seeds"})
    whole = [protocol, config.model_dump(mode="json", exclude_defaults=True), dataset.fingerprint, __version__]
    whole += [] if given is None else [given.digest]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def cell_task(
    dataset: list[Any],
    config: DistillConfig,
    buffer: TrajectoryBuffer,
    folder: Place,
    asked: SuiteConfig,
    cell: Cell,
    device: str,
    given: GivenSet | None = None,
) -> tuple[list[Tested], Cost]:
    """A cell, in a process whose peak of memory is then its own."""
    torch.set_num_threads(1)
    keep_memory()
    images: MedicalDataset = ray.get(dataset[0])
    problem = Problem(images, config, device) if given is None else given.problem(images, config, device)
    return run_cell(problem, buffer, RunFolder(folder), asked, cell, given)


class _Runner:
    """Runs the cells of a suite that are not done."""

    def __init__(
        self, asked: SuiteConfig, out: Place, table: CellTable, experts_root: Place, watcher: Watcher, gpus: float
    ) -> None:
        self._asked, self._out, self._table, self._experts_root = asked, out, table, experts_root
        self._watcher, self._gpus = watcher, gpus
        self.failed: set[Key] = set()
        self._datasets: dict[str, MedicalDataset | PtmError] = {}

    def tasks(self, cells: list[Cell], data_root: str | Path | None) -> Iterator[_Task]:
        """Those that are to be run. A cell whose images or settings can't be is recorded as failed."""
        for cell in cells:
            config = self._asked.config(cell)
            if cell.dataset not in self._datasets:
                try:
                    self._datasets[cell.dataset] = load_dataset(config.data, size=config.size, data_root=data_root)
                except PtmError as error:
                    self._datasets[cell.dataset] = error
            dataset = self._datasets[cell.dataset]
            if isinstance(dataset, PtmError):
                self._failed(cell, dataset, None)
                continue
            try:
                problem = Problem(dataset, config).check()
            except PtmError as error:
                self._failed(cell, error, fingerprint(self._asked, config, dataset))
                continue
            try:
                given = self._given(cell, problem)
            except PtmError as error:
                self._failed(cell, error, None)
                continue
            print_of = fingerprint(self._asked, config, dataset, given)
            if not self._table.done(cell.key, print_of):
                yield _Task(cell, problem, store_of(problem, self._experts_root).key, print_of, given)

    def _given(self, cell: Cell, problem: Problem) -> GivenSet | None:
        """The cell's set, where it was made elsewhere. Raises `DataError` where it isn't there or is another's."""
        where = self._asked.set_of(cell)
        if where is None:
            return None
        found = as_given(find_set(where), problem.dataset, problem.config)
        wanted = cell.ipc * problem.dataset.num_classes
        if len(found.images) != wanted:
            raise DataError(f"{where} has {len(found.images)} images, but ipc {cell.ipc} is {wanted}; give that many")
        return found

    def outdated(self) -> list[Cell]:
        """Cells of the suite that are finished, but not as they are asked for now."""
        found = []
        for cell in self._asked.cells():
            dataset = self._datasets.get(cell.dataset)
            # What is given is read again by every call.
            if not isinstance(dataset, MedicalDataset) or self._asked.set_of(cell) is not None:
                continue
            print_of = fingerprint(self._asked, self._asked.config(cell), dataset)
            if self._table.done(cell.key, None) and not self._table.done(cell.key, print_of):
                found.append(cell)
        return found

    def run(self, todo: list[_Task], workers: int) -> None:
        """Experts first, on all CPUs; then a cell on each."""
        datasets = {task.problem.dataset.fingerprint: task.problem.dataset for task in todo}
        held = {print_of: [ray.put(dataset)] for print_of, dataset in datasets.items()}
        loading = metrics.load_ahead()
        buffers = self._experts(todo, workers)
        # Cells have their time, and share it with nobody.
        loading.join()
        waiting = [task for task in todo if task.experts in buffers]
        running: dict[Any, _Task] = {}
        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_calls=1, max_retries=0)(cell_task)
        device = device_with(self._gpus)
        done, started = 0, time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    task = waiting.pop(0)
                    problem = task.problem
                    buffer = buffers[task.experts].first(problem.config.num_experts)
                    shared = held[problem.dataset.fingerprint], problem.config, buffer
                    what = self._folder(task), self._asked, task.cell, device, task.given
                    running[remote.remote(*shared, *what)] = task
                now = ", ".join(task.cell.name for task in running.values())
                self._watcher.update("cells", done, done + len(waiting) + len(running), now)
                (ready,), _ = ray.wait(list(running), num_returns=1)
                self._finish(running.pop(ready), ready, buffers)
                done += 1
        finally:
            # After an interrupt in a notebook, whose Ray stays, they would go on.
            for cell in running:
                ray.cancel(cell, force=True)
        self._watcher.update("cells", done, done, f"{time.monotonic() - started:.0f} s")

    def _experts(self, todo: list[_Task], workers: int) -> dict[str, TrajectoryBuffer]:
        """The trajectories of every kind of expert, as many as any cell asks for, by its key."""
        buffers: dict[str, TrajectoryBuffer] = {}
        for key, problem in kinds_wanted(task.problem for task in todo).items():
            count, store = problem.config.num_experts, store_of(problem, self._experts_root)
            missing = store.missing(count)
            started = time.monotonic()
            try:
                buffers[key] = experts_alone(problem, self._experts_root, workers, self._watcher, self._gpus)
            except PtmError as error:
                for task in todo:
                    if task.experts == key:
                        self._failed(task.cell, error, task.fingerprint)
                continue
            finally:
                # Also of those that were finished before an interrupt: the next call finds them there.
                trained = len(missing) - len(store.missing(count)) if missing else 0
                if trained:
                    self._table.note_experts(key, trained, time.monotonic() - started)
        return buffers

    def _folder(self, task: _Task) -> Place:
        # By its fingerprint: no cell goes on from what another one, of other settings, left.
        return self._out / WORK / f"{task.cell.name}-{task.fingerprint[:8]}"

    def _finish(self, task: _Task, ref: Any, buffers: dict[str, TrajectoryBuffer]) -> None:
        try:
            tested, cost = ray.get(ref)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            self._failed(task.cell, cause, task.fingerprint)
            return
        except RayError as error:
            self._failed(task.cell, error, task.fingerprint)
            return
        count, snapshots = task.problem.config.num_experts, task.problem.experts.snapshots + 1
        about = {
            **self._named(task.cell),
            "experts": task.experts if count else None,
            "experts_s": self._table.experts_s(task.experts, count) if count else 0.0,
            "buffer_bytes": count * snapshots * buffers[task.experts].store.params * 4,
            "fingerprint": task.fingerprint,
        }
        self._table.put({**about, **score} for score in scores(tested, cost, task.problem.dataset))
        # The cell is finished, whether or not what it worked on can be removed now.
        with contextlib.suppress(StoreError):
            self._folder(task).remove()

    def _named(self, cell: Cell) -> dict[str, Any]:
        return {
            "suite": self._asked.name,
            "dataset": cell.dataset,
            "ipc": cell.ipc,
            "method": cell.method,
            "seed": cell.seed,
        }

    def _failed(self, cell: Cell, error: Exception, print_of: str | None) -> None:
        """`print_of`: the fingerprint of what was asked for; None where, without its images, there is none."""
        said = " ".join(str(error).split()) or type(error).__name__
        self.failed.add(cell.key)
        # Rows of other settings would pass for those of the ones that failed. Where nobody can say whose they are, they
        # stay: a call that lacks the images must not cost the hours that they took.
        if not self._table.done(cell.key, print_of):
            self._table.put([{**self._named(cell), "error": without_folders(said)}])
        log.warning("%s failed: %s", cell.name, said)
