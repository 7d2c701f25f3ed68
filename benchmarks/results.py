"""The table of README: PTM beside random real images and MTT's random segments, at equal wall time.

    python -m benchmarks.results --data-root FOLDER --out runs/results

Every distillation runs on one core, its scoring on the validation split included, and all of a dataset share its
experts. As many run at once as there are cores. A cell that is finished is not run again, so that the command
can be stopped and given again; `results.json` and `results.md` are written anew after each.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ptm_ray as ptm
from ptm_ray.config.files import resolve
from ptm_ray.core.coresets import coreset_rows, herd
from ptm_ray.core.seeds import Seeds
from ptm_ray.data import MedicalDataset
from ptm_ray.evaluation.protocol import summarise
from ptm_ray.orchestrate import distill as on_ray
from ptm_ray.orchestrate.session import connected
from ptm_ray.stages.experts import store_of
from ptm_ray.stages.problem import Problem
from ptm_ray.store import atomic

DATASETS = ("pneumoniamnist", "bccd_32", "colon_32", "wbc_32")
IPCS = (1, 2, 10)
SEEDS = (0, 1, 2)
METRIC = "balanced_accuracy"


@dataclass(frozen=True)
class Variant:
    """What is asked of a distillation: its settings, and its budget as a multiple of the table's."""

    settings: dict[str, Any]
    budget: float = 1.0


WITHOUT_MITIGATION: dict[str, Any] = {"method": "ptm", "overlap": {"enabled": False}}
#: The first two are compared; the others answer what else the tables say. Overlap builds up only as a set is learned,
#: so that its mitigation is measured on longer runs.
VARIANTS = {
    "ptm": Variant({"method": "ptm"}),
    "mtt": Variant({"method": "mtt"}),
    "mtt-lr-by-place": Variant({"method": "mtt", "student": {"inner_lr_by_segment": True}}),
    "ptm-from-noise": Variant({"method": "ptm", "images": {"init": "noise"}}),
    "ptm-from-the-start": Variant({"method": "ptm", "schedule": {"start": 0, "later_share": 0.0}}),
    "ptm-long": Variant({"method": "ptm"}, budget=5.0),
    "ptm-long-without-mitigation": Variant(WITHOUT_MITIGATION, budget=5.0),
}


@dataclass(frozen=True)
class Cell:
    """One distillation of the table."""

    dataset: str
    ipc: int
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-ipc{self.ipc}-{self.variant}-{self.seed}"


def cells() -> list[Cell]:
    """All of them, the compared methods first, then seed by seed, so that what is there is always whole."""
    found = [Cell(d, ipc, v, s) for s in SEEDS for d in DATASETS for ipc in IPCS for v in ("ptm", "mtt")]
    for seed in SEEDS:
        long = ("ptm-long", "ptm-long-without-mitigation")
        found += [Cell(d, ipc, "mtt-lr-by-place", seed) for d in DATASETS for ipc in IPCS]
        found += [Cell(d, 10, v, seed) for d in DATASETS for v in long]
        found += [Cell(d, ipc, "ptm-from-noise", seed) for d in DATASETS for ipc in IPCS]
        found += [Cell(d, ipc, "ptm-from-the-start", seed) for d in DATASETS for ipc in IPCS]
    return found


@dataclass(frozen=True)
class Bench:
    """Where images, experts and results lie, and what each distillation may take."""

    data_root: Path
    out: Path
    budget_minutes: float

    def load(self, dataset: str) -> MedicalDataset:
        return ptm.load_dataset(self.data_root / f"{dataset}.npz")

    def baseline(self, dataset: str, kind: str, ipc: int, cores: int) -> None:
        """Random real images of equal number, or full data, scored once for all methods."""
        path = self.out / f"{dataset}-{kind}{ipc if kind == 'random' else ''}.json"
        if path.exists():
            return
        problem = Problem(self.load(dataset), resolve({"ipc": ipc, "images": {"init": "noise"}}))
        none = np.zeros(0, np.float32)
        scores, _ = on_ray.evaluate(problem, none, none, workers=cores, kinds=(kind,))
        atomic.write_text(path, json.dumps(scores[kind]))

    def herded(self, dataset: str, ipc: int, cores: int) -> None:
        """The real images that distillations start from, as they are: by three experts, as three seeds would."""
        path = self.out / f"{dataset}-herding{ipc}.json"
        if path.exists():
            return
        problem = Problem(self.load(dataset), resolve({"ipc": ipc}))
        store, (images, labels) = store_of(problem, self.out / "experts"), problem.tensors("train")
        found = []
        for seed in SEEDS:
            theta = torch.from_numpy(store.read(seed).theta[-1].copy())
            names, draw = problem.dataset.class_names, Seeds(seed).stream("herding baseline")
            rows = coreset_rows(herd, problem.network(), theta, images, labels, ipc, names, draw)
            one_hot = torch.nn.functional.one_hot(labels[rows], len(names)).float()
            chosen = images[rows].numpy(), one_hot.numpy()
            scores, _ = on_ray.evaluate(problem, *chosen, workers=cores, kinds=("synthetic",))
            found.append({METRIC: scores["synthetic"][METRIC]["mean"]})
        atomic.write_text(path, json.dumps(summarise(found)))

    def distil(self, cell: Cell) -> None:
        """One cell, unless it is there."""
        out = self.out / cell.name
        if (out / "result.json").exists():
            return
        ptm.distill(
            self.load(cell.dataset),
            out=out,
            budget_minutes=self.budget_minutes * VARIANTS[cell.variant].budget,
            experts_dir=self.out / "experts",
            workers=1,
            ipc=cell.ipc,
            seed=cell.seed,
            outer_steps=10**6,
            evaluation={"compare_with": ()},
            **VARIANTS[cell.variant].settings,
        )

    def run(self, wanted: list[Cell]) -> None:
        """Experts and baselines first, on all cores; then a distillation on each core."""
        with connected():
            import ray

            cores = int(ray.cluster_resources()["CPU"])
            for dataset in dict.fromkeys(cell.dataset for cell in wanted):
                started = time.monotonic()
                ptm.train_experts(self.load(dataset), experts_dir=self.out / "experts", workers=cores)
                print(f"{dataset}: experts there after {time.monotonic() - started:.0f} s", flush=True)
                self.baseline(dataset, "full", 1, cores)
                for ipc in IPCS:
                    self.baseline(dataset, "random", ipc, cores)
                    self.herded(dataset, ipc, cores)
            with ThreadPoolExecutor(cores) as pool:
                running = {pool.submit(self.distil, cell): cell for cell in wanted}
                for future in as_completed(running):
                    error = future.exception()
                    print(f"{running[future].name}: {error or 'done'}", flush=True)
                    self.write()

    def write(self) -> None:
        """`results.json` and `results.md` from all that is there."""
        found = collect(self.out)
        found["budget_minutes"] = self.budget_minutes
        atomic.write_text(self.out / "results.json", json.dumps(found, indent=1))
        atomic.write_text(self.out / "results.md", markdown(found))


def _networks(out: Path, dataset: str, ipc: int, variant: str) -> Iterator[dict[str, Any]]:
    for seed in SEEDS:
        path = out / Cell(dataset, ipc, variant, seed).name / "result.json"
        if path.exists():
            yield json.loads(path.read_text())


def collect(out: Path) -> dict[str, Any]:
    """Dataset → ipc → what was measured: every variant's mean over its distillation seeds, random, full."""
    found: dict[str, Any] = {"cells": []}
    for dataset in DATASETS:
        for ipc in IPCS:
            row: dict[str, Any] = {"dataset": dataset, "ipc": ipc}
            for kind, file in (("random", f"random{ipc}"), ("herding", f"herding{ipc}"), ("full", "full")):
                path = out / f"{dataset}-{file}.json"
                if path.exists():
                    row[kind] = json.loads(path.read_text())[METRIC]
            for variant in VARIANTS:
                results = list(_networks(out, dataset, ipc, variant))
                if results:
                    row[variant] = {
                        **summarise([{METRIC: r["scores"]["synthetic"][METRIC]["mean"]} for r in results])[METRIC],
                        "outer_steps": statistics.fmean(r["cost"]["outer_steps"] for r in results),
                        "cycles": [cycle for r in results for cycle in r["cycles"]],
                    }
            found["cells"].append(row)
    return found


def percent(row: dict[str, Any], name: str) -> str:
    """Mean ± standard deviation over distillation seeds (herding: experts; random: draws and networks)."""
    if name not in row:
        return ""
    spread = f" ± {100 * row[name]['std']:.1f}" if row[name]["n"] > 1 else " (one seed)"
    return f"{100 * row[name]['mean']:.1f}{spread}"


def points(row: dict[str, Any], more: str, less: str) -> str:
    """A difference in points; where it is negative, in words too."""
    if more not in row or less not in row:
        return ""
    shown = f"{100 * (row[more]['mean'] - row[less]['mean']):+.1f}"
    return f"{shown}, behind" if shown.startswith("-") else shown


def mean_points(found: dict[str, Any], more: str, less: str, ipc: int | None = None) -> str:
    """Its mean over the cells that have both, with the 95 % interval that their differences give."""
    rows = [r for r in found["cells"] if more in r and less in r and ipc in (None, r["ipc"])]
    if len(rows) < 2:
        return "not measured"
    over = summarise([{"points": 100 * (r[more]["mean"] - r[less]["mean"])} for r in rows])["points"]
    return f"{over['mean']:+.1f} points ({over['low']:+.1f} to {over['high']:+.1f}), {len(rows)} cells"


def markdown(found: dict[str, Any]) -> str:
    """The tables as README shows them."""
    columns = {
        "random real": lambda row: percent(row, "random"),
        "herded real": lambda row: percent(row, "herding"),
        "MTT segments": lambda row: percent(row, "mtt"),
        "MTT segments, lr by place": lambda row: percent(row, "mtt-lr-by-place"),
        "PTM": lambda row: percent(row, "ptm"),
        "PTM − random": lambda row: points(row, "ptm", "random"),
        "PTM − MTT": lambda row: points(row, "ptm", "mtt"),
        "PTM, all from snapshot 0": lambda row: percent(row, "ptm-from-the-start"),
        "PTM from noise": lambda row: percent(row, "ptm-from-noise"),
        "full data": lambda row: percent(row, "full"),
    }
    # What has not been measured at all has no column.
    columns = {name: cell for name, cell in columns.items() if any(cell(row) for row in found["cells"])}
    lines = ["| dataset | ipc | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    for row in found["cells"]:
        lines.append(f"| {row['dataset']} | {row['ipc']} | " + " | ".join(c(row) for c in columns.values()) + " |")
    lines += [
        "",
        f"PTM over random at ipc 1: {mean_points(found, 'ptm', 'random', 1)}; over all cells: "
        f"{mean_points(found, 'ptm', 'random')}. PTM over MTT: {mean_points(found, 'ptm', 'mtt')}.",
    ]
    if not any("ptm-long" in row for row in found["cells"]):
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "| ipc 10, five times the budget | without mitigation | with mitigation | cycles kept | overlap of those |",
        "|---|---|---|---|---|",
    ]
    for row in found["cells"]:
        if "ptm-long" in row:
            cycles = row["ptm-long"]["cycles"]
            kept = [c for c in cycles if not c["undone"]]
            ratios = " → ".join(
                f"{statistics.fmean(c[key] for c in kept):.2f}" for key in ("overlap_before", "overlap_after") if kept
            )
            shown = [percent(row, name) for name in ("ptm-long-without-mitigation", "ptm-long")]
            shown += [f"{len(kept)} of {len(cycles)}", ratios]
            lines.append(f"| {row['dataset']} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the four npz files")
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="where everything is kept")
    parser.add_argument("--budget-minutes", type=float, default=1.0, help="wall time of each distillation")
    parser.add_argument("--only", default="", help="run only cells whose name contains this")
    asked = parser.parse_args()
    bench = Bench(asked.data_root, asked.out, asked.budget_minutes)
    bench.run([cell for cell in cells() if asked.only in cell.name])
    print((asked.out / "results.md").read_text())


if __name__ == "__main__":
    main()
