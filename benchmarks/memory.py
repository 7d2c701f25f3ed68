"""Peak memory of one matching step over the number of student steps: recomputing, and within a stated budget.

    python -m benchmarks.memory

Each number of steps is measured in a process of its own, as the operating system counts it (peak resident set), beside
a process that builds everything and takes no step. ConvNetD3 of width 128 at ipc 10. Recomputing is a budget of 0, and
should not grow with the steps; what a step takes beyond what was there before it should stay below any other budget.
"""

import json
import subprocess
import sys
from pathlib import Path

STEPS = (10, 20, 40, 80)
CASES = {"28×28×1, 2 classes, 20 images": (1, 28, 2), "32×32×3, 9 classes, 90 images": (3, 32, 9)}
#: MiB of stored graphs; the default is the last.
BUDGETS = (1024, 2048)


def peak_mib() -> float:
    """This process's peak resident set so far. Linux alone."""
    # What getrusage tells may be the peak of the process which started this one.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def one(channels: int, resolution: int, classes: int, steps: int, budget_mib: int) -> float:
    """Peak resident set in MiB after one matching step (steps 0: after everything but that). Linux alone."""
    import torch

    from ptm_ray.core import nets
    from ptm_ray.core.seeds import Seeds
    from ptm_ray.core.synthetic import from_noise, inner_batches
    from ptm_ray.core.unroll import matching_gradients, plan_for
    from ptm_ray.stages.memory import keep_memory

    # As a worker does.
    torch.set_num_threads(1)
    keep_memory()
    draw = Seeds(0).stream("memory benchmark")
    network = nets.build(
        "convnet", channels=channels, resolution=resolution, classes=classes, width=128, depth=3, norm="instance"
    )
    start = network.init(draw)
    target = start + 0.01 * torch.randn(start.shape, generator=draw)
    synthetic = from_noise((channels, resolution, resolution), classes, 10, 0.01, draw)
    labels = synthetic.labels()
    ops = ("flip", "scale", "rotate", "crop", "cutout", "brightness", "contrast")
    if steps:
        batches = inner_batches(len(synthetic.images), 10 * classes, steps, ops, draw)
        plan = plan_for(budget_mib * 2**20, network, start, synthetic.images, labels, batches)
        matching_gradients(network, start, target, synthetic.images, labels, synthetic.log_lr, batches, plan=plan)
    return peak_mib()


def measured(case: tuple[int, int, int], steps: int, budget_mib: int = 0) -> float:
    """MiB, in a fresh process."""
    code = f"from benchmarks.memory import one; print(one(*{case}, {steps}, {budget_mib}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(said.stdout)


def main() -> None:
    record = {}
    for name, case in CASES.items():
        before = measured(case, 0)
        peaks = {steps: measured(case, steps) for steps in STEPS}
        growth = peaks[STEPS[-1]] / peaks[STEPS[0]] - 1
        own = (peaks[STEPS[-1]] - before) / (peaks[STEPS[0]] - before) - 1
        record[name] = {"before_mib": before, "peak_mib": peaks, "growth": growth, "growth_without_process": own}
        shown = ", ".join(f"{steps} steps {peak:.0f} MiB" for steps, peak in peaks.items())
        print(
            f"{name}: before {before:.0f} MiB; peak at {shown}; from 10 to 80: {growth:+.1%}, beyond before {own:+.1%}"
        )
        for budget in BUDGETS:
            taken = {steps: measured(case, steps, budget) - before for steps in STEPS}
            record[name][f"beyond_before_mib_within_{budget}"] = taken
            shown = ", ".join(f"{steps} steps {mib:.0f} MiB" for steps, mib in taken.items())
            print(f"{name}: within {budget} MiB, beyond before: {shown}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
