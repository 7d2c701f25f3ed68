"""The job that `hosts.py` runs: experts on all nodes, a buffer read from all, a sweep, a run in which one is lost.

Prints what it saw as one line of JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import ray

import ptm_ray as ptm
from ptm_ray.config.base import merge
from ptm_ray.orchestrate.crew import Crew
from ptm_ray.orchestrate.experts import experts_with_progress
from ptm_ray.orchestrate.watcher import Nobody
from ptm_ray.store.places import Place
from tests.small import SETTINGS, small_dataset, small_problem

NODES = 3
EXPERTS = {"experts": {"count": 6}}
#: Long enough to be cut in the middle.
LONG = merge(SETTINGS, {**EXPERTS, "outer_steps": 150})


def node(worker):
    return ray.get_runtime_context().get_node_id()


def digests(worker, buffer):
    """What a worker reads of every snapshot of every expert, summed up."""
    return [[float(np.float64(vector).sum()) for vector in (buffer.vector(e, k) for k in range(6))] for e in range(6)]


class CutMidway:
    """Watches a distillation and asks for the cut once it is under way."""

    def __init__(self, folder):
        self._folder, self.steps = folder, []

    def update(self, stage, done, total, words=""):
        if stage == "distilling":
            self.steps.append(int(done))
            if done >= 20 and not (self._folder / "was-cut").exists():
                (self._folder / "cut").touch()


def main(folder):
    ray.init(log_to_driver=False)
    deadline = time.monotonic() + 90
    while sum(found["Alive"] for found in ray.nodes()) < NODES:
        assert time.monotonic() < deadline, f"only {len(ray.nodes())} nodes came"
        time.sleep(0.3)
    seen = {"addresses": sorted({found["NodeManagerAddress"] for found in ray.nodes()})}
    problem, experts = small_problem(**EXPERTS), folder / "experts"
    with Crew.start(ray.put(problem), NODES) as crew:
        seen["nodes_of_workers"] = len(set(ray.get([m.__ray_call__.remote(node) for m in crew.members])))
        buffer = experts_with_progress(problem, crew, Place(experts), Nobody())
        read = ray.get([m.__ray_call__.remote(digests, buffer) for m in crew.members])
    files = [[float(np.float64(vector).sum()) for vector in buffer.store.read(e).theta] for e in range(6)]
    seen["all_read_what_the_files_hold"] = all(found == files for found in read)

    swept = ptm.sweep(
        {"searcher": "grid", "settings": merge(SETTINGS, EXPERTS), "space": {"seed": [0, 1, 2]}},
        small_dataset(),
        out=folder / "sweep",
        experts_dir=experts,
        workers=1,
    )
    seen["trials"], seen["failed"] = swept.trials, swept.failed

    watcher = CutMidway(folder)
    made = ptm.distill(small_dataset(), out=folder / "run", experts_dir=experts, watcher=watcher, **LONG)
    seen["outer_steps"], seen["kinds"] = made.cost["outer_steps"], list(made.scores)
    seen["alive"] = sum(found["Alive"] for found in ray.nodes())
    seen["steps_shown"] = len(watcher.steps)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
