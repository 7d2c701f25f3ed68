"""How fast matching, experts and evaluation are: beside the published way, and beside what this machine can do at most.

    python -m benchmarks.speed [--record FILE] [--against FILE] [--images 2 20 90] [--steps 10 20 40]
        [--allocator]

All ways of a row take turns in one run, so that a ratio holds though machines differ and rest; what runs is described
in `matching_step.py`, `training.py` and `plain.py`. Counted work is the least that an exact gradient takes, in forward
passes: 9 for a student step and the way back through it, 3 for a training step. Its rate is set against that of the
machine's best convolution of the same precision, measured before all else. It is counted as if every convolution were
the sum that defines it; where ours go by tiles (`nets/winograd.py`), which takes a quarter of that, it can be more than
all.

`--record` writes what was measured; `--against` puts an earlier record's ratios beside today's.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import rates
from benchmarks.matching_step import Case
from benchmarks.matching_step import compare as compare_steps
from benchmarks.training import SHAPES
from benchmarks.training import compare as compare_training
from benchmarks.turns import PLAIN, PLAIN_KEPT, WIDTH

COLUMNS = (
    "",
    "way",
    "times as fast as published",
    "counted work, of the best convolution",
    "peak memory, MiB (beyond start)",
)


def own_mib(found: dict[str, Any], way: str) -> float:
    """What the process came to hold at the most beyond what it held before the first step."""
    return float(found["peak_mib"][way] - found["before_mib"][way])


def lines(found: dict[str, Any], best: dict[str, float], before: dict[tuple[str, str], float]) -> list[str]:
    """Of the table: one for each way."""
    shown = []
    for way, seconds in found["seconds"].items():
        precision = "bfloat16" if way == "bfloat16" else "float32"
        times = found["seconds"][PLAIN] / seconds
        then = before.get((found["what"], way))
        rate = found["flops"] / seconds / best[f"convolution, {precision}"]
        peak = f"{found['peak_mib'][way]:.0f} ({own_mib(found, way):.0f})" if "peak_mib" in found else ""
        said = f"{times:.2f}×" + (f" (before: {then:.2f}×)" if then else "")
        shown.append(f"| {found['what']} | {way} | {said} | {rate:.0%} | {peak} |")
    return shown


def ratios(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Times as fast as the plain way, by row and way."""
    return {
        (row["what"], way): row["seconds"][PLAIN] / seconds for row in rows for way, seconds in row["seconds"].items()
    }


def recorded(path: Path) -> list[dict[str, Any]]:
    """Rows of a record, each with the machine that it was measured on: earlier records say one for all of them."""
    record = json.loads(path.read_text())
    return [{"machine": record.get("machine"), **row} for row in record["rows"]]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 20, 40], help="student steps")
    parser.add_argument("--images", type=int, nargs="*", default=[2, 20, 90], help="images of the synthetic set")
    tasks = ["experts", *map(str, SHAPES)]
    parser.add_argument("--training", nargs="*", default=tasks, help="experts, and images of sets to evaluate")
    parser.add_argument(
        "--record", type=Path, help="JSON file to write; rows that it has and that are not measured now stay"
    )
    kept = "measure the published way with the allocator settings of ours too (plain-kept): what they alone are worth"
    parser.add_argument("--allocator", action="store_true", help=kept)
    parser.add_argument("--against", type=Path, help="JSON file of an earlier run")
    asked = parser.parse_args()
    before = ratios(recorded(asked.against)) if asked.against else {}
    best = rates(WIDTH)
    print(", ".join(f"{name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in best.items()))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    more = (PLAIN_KEPT,) if asked.allocator else ()
    measures = [
        *(partial(compare_steps, Case(images, steps), more) for images in asked.images for steps in asked.steps),
        *(partial(compare_training, task, more) for task in asked.training),
    ]
    rows = recorded(asked.record) if asked.record and asked.record.exists() else []
    machine = {"cores": os.cpu_count(), "torch": torch.__version__, "rates": best}
    for measure in measures:
        found = {**measure(), "machine": machine}
        print("\n".join(lines(found, best, before)), flush=True)
        rows = [row for row in rows if row["what"] != found["what"]] + [found]
        if asked.record:
            asked.record.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
