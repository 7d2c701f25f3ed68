"""How long a command takes to begin, and how its cost grows: with experts, outer steps and student steps.

    python -m benchmarks.cost

Start-up is that of `make distill`'s command on images whose experts are missing: from the command to the first expert's
snapshot 0, which comes before its first step. Beside it the same command again, to the first outer step: it finds all
experts. Growth is a straight line fitted to all sizes, and how far the worst of them is from it.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 3
EXPERTS, OUTER_STEPS, STUDENT_STEPS = (2, 4, 8, 16), (25, 50, 100, 200), (10, 20, 40, 80)
COMMAND = "distill --data cellphantom --config tune_configs/first.toml --seed 0 --outer-steps 5"
#: `ptm-ray` in a process that says when its bars are told of a stage the first and the second time.
TOLD = """
import sys, time
from ptm_ray.cli import main, show
calls, update = {}, show.Bars.update
def noted(self, stage, *rest):
    calls[stage] = calls.get(stage, 0) + 1
    if calls[stage] < 3:
        print("told", stage, calls[stage], time.time(), file=sys.stderr, flush=True)
    update(self, stage, *rest)
show.Bars.update = noted
main.main()
"""


def start_up(root: Path, number: int) -> dict[str, float]:
    """Seconds until the first snapshot and, by a second run on the same experts, until the first outer step."""
    experts = root / f"experts-{number}"
    first = told([*COMMAND.split(), "--experts-dir", str(experts), "--out", str(root / f"first-{number}")])
    written = {path: path.stat().st_mtime_ns for path in experts.rglob("*.arrow")}
    second = told([*COMMAND.split(), "--experts-dir", str(experts), "--out", str(root / f"second-{number}")])
    assert written == {path: path.stat().st_mtime_ns for path in experts.rglob("*.arrow")}
    # The first word of experts is that none is trained yet; the second comes with a snapshot.
    return {"to_first_expert_step_s": first["experts", 2], "to_first_outer_step_again_s": second["distilling", 1]}


def told(words: list[str]) -> dict[tuple[str, int], float]:
    """Seconds from the command's start until each stage was first heard of, and the second time."""
    started = time.time()
    done = subprocess.run([sys.executable, "-c", TOLD, *words], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("told ")]
    return {(stage, int(number)): float(when) - started for _, stage, number, when in lines}


def growth(sizes: tuple[int, ...], seconds: list[float]) -> dict[str, Any]:
    """Slope and intercept of the line through the points, and the largest distance of one from it, as a share."""
    slope, intercept = np.polyfit(sizes, seconds, 1)
    line = slope * np.array(sizes) + intercept
    off = float(np.abs(np.array(seconds) / line - 1).max())
    return {"sizes": sizes, "seconds": seconds, "slope_s": float(slope), "intercept_s": float(intercept), "off": off}


def experts_grow(root: Path) -> dict[str, Any]:
    """Experts by two workers that are there."""
    import ray

    from ptm_ray.config.files import resolve
    from ptm_ray.data.phantom import cellphantom
    from ptm_ray.orchestrate.crew import Crew
    from ptm_ray.orchestrate.experts import fill_buffer
    from ptm_ray.orchestrate.session import connected
    from ptm_ray.stages.problem import Problem
    from ptm_ray.store.places import Place

    seconds = []
    images = cellphantom()
    with connected(2):
        for count in (2, *EXPERTS):
            problem = Problem(images, resolve({"experts": {"count": count, "steps": 100}}))
            with Crew.start(ray.put(problem), 2) as crew:
                ray.get([member.process_id.remote() for member in crew.members])
                started = time.perf_counter()
                fill_buffer(problem, crew, Place(root / f"grown-{len(seconds)}"), lambda done, wanted: None)
                seconds.append(time.perf_counter() - started)
    # The first one warmed the machine up.
    return growth(EXPERTS, seconds[1:])


def outer_steps_grow(root: Path) -> dict[str, Any]:
    """Outer steps of twenty student steps each, in one process, without validation in between."""
    import torch

    from ptm_ray.config.files import resolve
    from ptm_ray.data.phantom import cellphantom
    from ptm_ray.stages.distill import Distillation
    from ptm_ray.stages.experts import ExpertTrainer
    from ptm_ray.stages.memory import keep_memory
    from ptm_ray.stages.problem import Problem
    from ptm_ray.stages.scoring import Evaluator, InlineScorer
    from ptm_ray.store.checkpoints import RunFolder
    from ptm_ray.store.places import Place

    settings = {
        "ipc": 2,
        "method": "mtt",
        "outer_steps": max(OUTER_STEPS),
        "experts": {"count": 1, "steps": 100},
        "student": {"steps_min": 20, "steps_max": 20, "inner_lr": 0.01},
        "evaluation": {"validate_every": 10**6},
    }
    problem = Problem(cellphantom(), resolve(settings))
    # As a worker does.
    torch.set_num_threads(1)
    keep_memory()
    vectors = list(ExpertTrainer(problem).snapshots(0))

    class One:
        num_experts = 1

        def vector(self, expert: int, snapshot: int) -> Any:
            return vectors[snapshot]

    run = Distillation(problem, One(), InlineScorer(Evaluator(problem)), RunFolder(Place(root / "steps")))
    list(run.run(stop_after=1))
    started, seconds = time.perf_counter(), []
    for number, _ in enumerate(run.run(stop_after=max(OUTER_STEPS) - 1), start=1):
        if number + 1 in OUTER_STEPS:
            seconds.append(time.perf_counter() - started)
    return growth(OUTER_STEPS, seconds)


def student_steps_grow() -> dict[str, Any]:
    """Gradients of a segment, the middle of three."""
    from benchmarks.matching_step import Case, Measured

    seconds = []
    for steps in STUDENT_STEPS:
        measured, taken = Measured("stored", Case(20, steps)), []
        for _ in range(4):
            started = time.perf_counter()
            measured.step()
            taken.append(time.perf_counter() - started)
        seconds.append(float(np.median(taken[1:])))
    return growth(STUDENT_STEPS, seconds)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        starts = [start_up(root, number) for number in range(ROUNDS + 1)][1:]
        middle = {name: float(np.median([start[name] for start in starts])) for name in starts[0]}
        for name, seconds in middle.items():
            print(f"{name}: {seconds:.1f}", flush=True)
        record: dict[str, Any] = {"start_up": middle}
        for name, measure in (
            ("experts", lambda: experts_grow(root)),
            ("outer steps", lambda: outer_steps_grow(root)),
            ("student steps", student_steps_grow),
        ):
            record[name] = found = measure()
            print(f"{name}: {found['slope_s']:.3g} s each, at most {found['off']:.1%} off the line", flush=True)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
