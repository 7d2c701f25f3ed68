"""Peak memory of one matching step over the number of student steps, recomputing.

    python -m benchmarks.memory

Each number of steps is measured in a process of its own, as the operating system counts it (peak resident set), beside
a process that builds everything and takes no step. ConvNetD3 of width 128 at ipc 10.
"""

import json
import subprocess
import sys

STEPS = (10, 20, 40, 80)
CASES = {"28×28×1, 2 classes, 20 images": (1, 28, 2), "32×32×3, 9 classes, 90 images": (3, 32, 9)}


def one(channels: int, resolution: int, classes: int, steps: int) -> int:
    """Peak resident set in KiB after one matching step (steps 0: after everything but that)."""
    import resource

    import torch

    from ptm_ray.core import nets
    from ptm_ray.core.seeds import Seeds
    from ptm_ray.core.synthetic import from_noise, inner_batches
    from ptm_ray.core.unroll import matching_gradients, plan_for

    torch.set_num_threads(1)
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
        plan = plan_for(0, network, start, synthetic.images, labels, batches)
        matching_gradients(network, start, target, synthetic.images, labels, synthetic.log_lr, batches, plan=plan)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(case: tuple[int, int, int], steps: int) -> float:
    """MiB, in a fresh process."""
    code = f"from benchmarks.memory import one; print(one(*{case}, {steps}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(said.stdout) / 1024


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
    print(json.dumps(record))


if __name__ == "__main__":
    main()
