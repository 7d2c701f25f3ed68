"""Matching step, experts and evaluation on a GPU, ours and the published way's, and a table of both.

    python -m benchmarks.gpu --record speed-gpu.json

The published way (MTT from its description: one network at a time, the framework's layers, full unrolling; images of
experts from a DataLoader) and ours take turns in one process on the same card. Both compute convolutions in TF32, as
the framework does by default; `ieee` is ours without it, `bfloat16` ours with the option. Neither Ray nor data is
needed. Counted work is a share of the best convolution of the same precision in the same run. Errors of a matching
step's gradient in the images are relative, against float64 on the same card.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.machine import IMAGES, ROWS, SIDE, forward_flops
from benchmarks.matching_step import Case
from benchmarks.plain import PlainConvNet, plain_step, plain_training
from benchmarks.training import SHAPES
from benchmarks.turns import OPS, WIDTH, in_turns
from ptm_ray.core import nets
from ptm_ray.core.batch import Batch
from ptm_ray.core.expert import ExpertTraining
from ptm_ray.core.replay import Replays
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.synthetic import from_noise, inner_batches
from ptm_ray.core.unroll import RECOMPUTE, Gradients, Plan, Student, matching_gradients
from ptm_ray.evaluation.train import TrainRecipe, predict, train, trainer

DEVICE = torch.device("cuda")
#: Training images of experts, steps that are timed, images a step as MTT has them.
TRAINED_ON, EXPERT_STEPS, EXPERT_BATCH = 4096, 60, 256
#: Networks of an evaluation, update steps of each, images that they then classify.
NETWORKS, EVALUATION_STEPS, SCORED = 5, 60, 600
#: Experts that are trained side by side, and students that are matched so.
TOGETHER, STUDENTS = (1, 4, 8), (2, 4, 8)
Way = Callable[[], object]


def rates() -> dict[str, float]:
    """Floating-point operations a second of this card's best matrix product and best convolution."""
    found = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, True),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        a, b = (torch.randn(4 * ROWS, 4 * ROWS, device=DEVICE, dtype=dtype) for _ in range(2))
        found[f"matrix product, {name}"] = 2 * (4 * ROWS) ** 3 / seconds(lambda a=a, b=b: a @ b, 10)
        order = torch.channels_last
        x = torch.randn(10 * IMAGES, WIDTH, SIDE, SIDE, device=DEVICE, dtype=dtype).contiguous(memory_format=order)
        kernel = torch.randn(WIDTH, WIDTH, 3, 3, device=DEVICE, dtype=dtype).contiguous(memory_format=order)
        flops = 2 * 9 * WIDTH * WIDTH * SIDE * SIDE * 10 * IMAGES
        found[f"convolution, {name}"] = flops / seconds(lambda x=x, k=kernel: F.conv2d(x, k, padding=1), 10)
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def seconds(run: Way, times: int = 1) -> float:
    """Of one of several runs in a row, after one that only warms up."""
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def compare(what: str, ways: dict[str, Way], flops: float, **more: Any) -> dict[str, Any]:
    """Medians of seconds, measured in turns, and the memory that each takes."""
    memory = {name: peak_mib(run) for name, run in ways.items()}
    taken = in_turns({name: lambda run=run: seconds(run) for name, run in ways.items()})
    return {"what": what, "seconds": taken, "flops": flops, "peak_mib": memory, **more}


def peak_mib(run: Way) -> float:
    """At the first run, which records what is to be replayed, beyond what was held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def matching(case: Case) -> dict[str, Any]:
    """Of one matching step."""
    channels, side, classes = case.shape
    draw = Seeds(0).stream("speed benchmark")
    made = from_noise((channels, side, side), classes, case.images // classes, 0.01, draw)
    drawn = inner_batches(len(made.images), case.images, case.steps, OPS, draw)
    batches = [Batch(batch.rows.to(DEVICE), batch.draw) for batch in drawn]
    images, labels, log_lr, whole = (t.to(DEVICE) for t in (made.images, made.labels(), made.log_lr, made.classes))
    net = PlainConvNet(channels, side, classes, WIDTH).to(DEVICE)
    plain_start = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    plain_target, lr = plain_start + 0.01 * torch.randn_like(plain_start), torch.tensor(0.01, device=DEVICE)
    ways: dict[str, Way] = {
        "plain": lambda: plain_step(net, plain_start, plain_target, images, whole, lr, batches),
    }
    sizes = {"channels": channels, "resolution": side, "classes": classes, "width": WIDTH, "depth": 3}
    start = nets.build("convnet", **sizes).init(draw)
    target = start + 0.01 * torch.randn(start.shape, generator=draw)
    given = start.to(DEVICE), target.to(DEVICE), images, labels, log_lr
    exact = matching_gradients(
        nets.build("convnet", **sizes), *(t.double() for t in given), batches, plan=Plan(case.steps, 1)
    ).images
    errors, same_bits, memory = {}, {}, {}
    for name, precision, plan, tf32 in (
        ("stored", "float32", Plan(case.steps, 1), True),
        ("recompute", "float32", RECOMPUTE, True),
        ("bfloat16", "bfloat16", Plan(case.steps, 1), True),
        ("ieee", "float32", Plan(case.steps, 1), False),
    ):
        # It counts when a step is recorded, which is now.
        torch.backends.cudnn.allow_tf32 = tf32
        network = nets.build("convnet", **sizes, precision=precision)
        find = Replays(network)

        def run(find: Replays = find, plan: Plan = plan) -> Gradients:
            return find([Student(*given[:2], batches)], *given[2:], plan=plan)

        ways[name] = run
        memory[name] = peak_mib(run)
        errors[name] = float((run().images - exact).norm() / exact.norm())
        one, other = ([part.clone() for part in run()] for _ in range(2))
        same_bits[name] = all(map(torch.equal, one, other))
    torch.backends.cudnn.allow_tf32 = True
    for count in STUDENTS:
        find, draws = Replays(nets.build("convnet", **sizes)), [Seeds(k).stream("students") for k in range(count)]
        drawn_anew = [inner_batches(len(images), case.images, case.steps, OPS, own) for own in draws]
        students = [Student(*given[:2], [Batch(b.rows.to(DEVICE), b.draw) for b in own]) for own in drawn_anew]

        def several(find: Replays = find, students: list[Student] = students) -> Gradients:
            return find(students, *given[2:], plan=Plan(case.steps, 1))

        ways[f"stored, {count} side by side"] = several
        memory[f"stored, {count} side by side"] = peak_mib(several)
    what = f"matching step, {case.images} images, {case.steps} student steps"
    found = compare(what, ways, case.counted_flops(), errors=errors, same_bits=same_bits)
    found["peak_mib"] |= memory
    return each(found)


def experts() -> dict[str, Any]:
    """Of a single expert's training steps."""
    shape = SHAPES[20]
    channels, side, classes = shape
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(TRAINED_ON, channels, side, side, generator=draw)
    labels = torch.arange(TRAINED_ON) % classes
    plain = PlainConvNet(*shape, WIDTH).to(DEVICE)
    here = TensorDataset(images.to(DEVICE), labels.to(DEVICE))
    loader = DataLoader(here, batch_size=EXPERT_BATCH, shuffle=True, drop_last=True)
    ways: dict[str, Way] = {
        "plain": lambda: list(islice(plain_training(plain, loader, OPS, draw), EXPERT_STEPS)),
    }
    for precision in ("float32", "bfloat16"):
        network = nets.build(
            "convnet", channels=channels, resolution=side, classes=classes, width=WIDTH, depth=3, precision=precision
        )
        settings: dict[str, Any] = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "balanced": False, "ops": OPS}
        for count in TOGETHER:
            training = ExpertTraining(network, *here.tensors, batch_size=EXPERT_BATCH, **settings)
            starts = [network.init(draw).to(DEVICE) for _ in range(count)]

            def run(training: Any = training, starts: Any = starts) -> object:
                draws = [torch.Generator().manual_seed(k) for k in range(len(starts))]
                return list(training.snapshots(starts, [EXPERT_STEPS], draws))

            ways[f"{precision}, {count} side by side"] = run
    flops = 3 * EXPERT_STEPS * EXPERT_BATCH * forward_flops(shape, WIDTH)
    return each(compare("experts", ways, flops, steps=EXPERT_STEPS))


def each(found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one network, where several were trained or matched side by side."""
    for name in found["seconds"]:
        if "side by side" in name:
            found["seconds"][name] /= int(name.split(", ")[1].split()[0])
    return found


def evaluation(count: int) -> dict[str, Any]:
    """Of five networks that are trained on a set and scored."""
    shape = SHAPES[count]
    channels, side, classes = shape
    draw = torch.Generator().manual_seed(0)
    images, scored = (torch.randn(n, channels, side, side, generator=draw).to(DEVICE) for n in (count, SCORED))
    labels = (torch.arange(count) % classes).to(DEVICE)
    loader = DataLoader(TensorDataset(images, labels), batch_size=count, shuffle=True, drop_last=True)

    def plain() -> None:
        for _ in range(NETWORKS):
            net = PlainConvNet(*shape, WIDTH).to(DEVICE)
            list(islice(plain_training(net, loader, OPS, draw), EVALUATION_STEPS))
            with torch.no_grad():
                net(scored)

    network = nets.build("convnet", channels=channels, resolution=side, classes=classes, width=WIDTH, depth=3)
    recipe = TrainRecipe(EVALUATION_STEPS, 0.01, 0.9, 5e-4, 256, OPS)
    sgd, probabilities = trainer(network, recipe, DEVICE), F.one_hot(labels, classes).float()

    def ours() -> None:
        draws = [torch.Generator().manual_seed(k) for k in range(NETWORKS)]
        for trained in train(network, images, probabilities, recipe, draws, sgd=sgd):
            predict(network, trained, scored)

    passes = 3 * EVALUATION_STEPS * count + SCORED
    what = f"evaluation of {NETWORKS} networks, {count} images"
    return compare(what, {"plain": plain, "side by side": ours}, NETWORKS * passes * forward_flops(shape, WIDTH))


def line(found: dict[str, Any], way: str, best: dict[str, float]) -> str:
    """Of the table."""
    taken, plain = found["seconds"][way], found["seconds"]["plain"]
    precision = "bfloat16" if "bfloat16" in way else "float32" if way == "ieee" else "TF32"
    share = found["flops"] / taken / best[f"convolution, {precision}"]
    rate = f"{1 / taken:.1f} a second"
    if "steps" in found:
        rate = f"{3600 / taken * found['steps']:,.0f} steps an hour"
    error = found.get("errors", {}).get(way)
    cells = [
        found["what"],
        way,
        rate,
        f"{plain / taken:.1f}×",
        f"{share:.0%}",
        f"{found['peak_mib'][way]:.0f}",
        "" if error is None else f"{error:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


COLUMNS = ("", "way", "rate", "times as fast as published", "counted work, of the best convolution", "MiB", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 20, 40], help="student steps")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here; `python -m benchmarks.speed` measures processors")
    best = rates()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(", ".join(f"{name}: {rate / 1e12:.0f} TFLOP/s" for name, rate in best.items()))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    measures: list[Callable[[], dict[str, Any]]] = [
        lambda images=images, steps=steps: matching(Case(images, steps)) for images in SHAPES for steps in asked.steps
    ]
    measures += [experts, *(lambda count=count: evaluation(count) for count in SHAPES)]
    rows = []
    for measure in measures:
        rows.append(measure())
        print("\n".join(line(rows[-1], way, best) for way in rows[-1]["seconds"]), flush=True)
        if asked.record:
            machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rates": best}
            asked.record.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
