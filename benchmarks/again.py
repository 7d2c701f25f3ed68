"""Makes cells of a benchmark's table again, as methods are now, for as many outer steps as they had.

    python -m benchmarks.again SUITE TABLE --methods datm hoptm --data-root FOLDER --experts-dir FOLDER --out FOLDER

What a cell with a time budget comes to depends on the machine; for its number of outer steps it is the same on any,
busy or not. So rows of a method that was mended can stand beside those of others that were made when the machine was
another. Their seconds and their memory stay those of before. `--out` has the whole table, the new rows in place of the
old; a call that is given again goes on with what is missing.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptm_ray.config.suite import Cell, SuiteConfig
    from ptm_ray.stages.problem import Problem
    from ptm_ray.store.cells import CellTable

#: In `--out`: names of the cells that were made again.
MADE = "again.json"
#: What a row has from before: what names it, and what depends on the machine.
KEPT = ("suite", "dataset", "ipc", "method", "seed", "fingerprint", "experts", "experts_s", "buffer_bytes")
KEPT += ("distillation_s", "peak_memory_bytes", "processor")


def wanted(asked: "SuiteConfig", table: "CellTable", done: list[str]) -> dict["Cell", dict[str, Any]]:
    """Cells of the suite that the table has, but for those that are done, each with a row of it."""
    from ptm_ray.store.cells import key_of

    held: dict[Any, dict[str, Any]] = {}
    for row in table.rows:
        if row["error"] is None:
            held.setdefault(key_of(row), row)
    return {cell: held[cell.key] for cell in asked.cells() if cell.key in held and cell.name not in done}


def problems(asked: "SuiteConfig", todo: dict["Cell", dict[str, Any]], data_root: Path) -> dict["Cell", "Problem"]:
    """Each cell's, with the outer steps that it had."""
    from ptm_ray.data import load_dataset
    from ptm_ray.stages.problem import Problem

    datasets, found = {}, {}
    for cell, before in todo.items():
        config = asked.config(cell).model_copy(update={"outer_steps": before["outer_steps"]})
        if cell.dataset not in datasets:
            datasets[cell.dataset] = load_dataset(config.data, size=config.size, data_root=data_root)
        found[cell] = Problem(datasets[cell.dataset], config).check()
    return found


def run(asked: "SuiteConfig", todo: dict["Cell", dict[str, Any]], given: argparse.Namespace, done: list[str]) -> None:
    """A cell on every CPU, each into the table as soon as it is finished."""
    import ray

    from ptm_ray.cli.show import Bars
    from ptm_ray.orchestrate.bench import WORK, cell_task
    from ptm_ray.orchestrate.experts import experts_alone
    from ptm_ray.orchestrate.session import connected, count_workers
    from ptm_ray.stages.cell import scores
    from ptm_ray.stages.experts import kinds_wanted, store_of
    from ptm_ray.store.cells import CellTable
    from ptm_ray.store.places import Place

    table, root = CellTable(Place(given.out)), Place(given.experts_dir).absolute()
    own = problems(asked, todo, given.data_root)
    without_budget = asked.model_copy(update={"budget_minutes": None})
    with connected(), Bars() as bars:
        kinds = kinds_wanted(own.values())
        buffers = {key: experts_alone(kind, root, count_workers(None), bars) for key, kind in kinds.items()}
        images = {problem.dataset.fingerprint: [ray.put(problem.dataset)] for problem in own.values()}
        remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(cell_task)
        running = {}
        for cell, problem in own.items():
            buffer = buffers[store_of(problem, root).key].first(problem.experts.count)
            shared = images[problem.dataset.fingerprint], problem.config, buffer
            folder = Place(given.out / WORK / cell.name).absolute()
            running[remote.remote(*shared, folder, without_budget, cell, "cpu")] = cell
        while running:
            bars.update("cells", len(own) - len(running), len(own))
            (ready,), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(ready)
            kept = {name: todo[cell][name] for name in KEPT}
            table.put({**score, **kept} for score in scores(*ray.get(ready), own[cell].dataset))
            done.append(cell.name)
            (given.out / MADE).write_text(json.dumps(done))
        bars.update("cells", len(own), len(own))
    shutil.rmtree(given.out / WORK, ignore_errors=True)


def main() -> None:
    from ptm_ray.config.suite import read_suite
    from ptm_ray.store.cells import CellTable
    from ptm_ray.store.places import Place

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("table", type=Path, help="folder of the table")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--experts-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not given.out.exists():
        shutil.copytree(given.table, given.out)
    made = given.out / MADE
    done: list[str] = json.loads(made.read_text()) if made.exists() else []
    asked = read_suite(given.suite).only(given.methods)
    todo = wanted(asked, CellTable(Place(given.out)), done)
    if todo:
        run(asked, todo, given, done)


if __name__ == "__main__":
    main()
