"""Experts per minute with one expert actor and with two, interleaved in one run on two cores.

python -m benchmarks.experts
"""

import json
import tempfile
import time
from pathlib import Path

from ptm_ray.config.files import resolve
from ptm_ray.data.phantom import cellphantom
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.experts import fill_buffer
from ptm_ray.orchestrate.session import connected
from ptm_ray.stages.problem import Problem
from ptm_ray.store.places import Place

EXPERTS = 4
ROUNDS = 2


def main() -> None:
    import ray

    problem = Problem(cellphantom(), resolve({"experts": {"count": EXPERTS, "steps": 150, "snapshots": 20}}))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with connected(2), tempfile.TemporaryDirectory() as scratch:
        problem_ref = ray.put(problem)
        both = Crew.start(problem_ref, 2)
        ray.get([actor.process_id.remote() for actor in both.members])
        # A first pass, so that both hold the images and have run the kernels once.
        fill_buffer(problem, both, Place(Path(scratch) / "first"), lambda done, wanted: None)
        for turn in range(ROUNDS):
            for count in (1, 2):
                started = time.perf_counter()
                root = Place(Path(scratch) / f"{turn}-{count}")
                fill_buffer(problem, Crew(problem_ref, both.members[:count]), root, lambda done, wanted: None)
                seconds[count].append(time.perf_counter() - started)
    per_minute = {count: 60 * EXPERTS / min(taken) for count, taken in seconds.items()}
    ratio = per_minute[2] / per_minute[1]
    print(f"experts per minute: {per_minute[1]:.1f} with one actor, {per_minute[2]:.1f} with two: {ratio:.2f}×")
    print(json.dumps({"seconds": seconds, "ratio": ratio}))


if __name__ == "__main__":
    main()
