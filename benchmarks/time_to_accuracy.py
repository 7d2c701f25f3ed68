"""Wall time to the validation accuracy that MTT as published comes to, from nothing, experts included.

    python -m benchmarks.time_to_accuracy --data-root FOLDER [--datasets pneumoniamnist] [--ipc 1 10] [--natural]

MTT from its description, on the whole machine: one expert after another on batches of 256 from a DataLoader, 50 epochs
at a rate of 0.01, a snapshot an epoch; then one segment after another by full unrolling in the framework's own layers,
momentum 0.5, the rates of the published table, or a tenth of them where images stop being numbers. Its sets are scored
every so often as ours are, which does not count as its time. It has `--minutes` of matching, and its best score in them
is the one to reach; published are 5,000 steps, so that the score would still rise. It has `--experts` experts, and is
charged for those: published are 100, and what those would have taken is told beside it.

Ours is `ptm-ray distill` with its defaults and nothing found, its own validation and Ray's start included. MTT's
experts see classes as often as they occur; with `--natural` ours do too, which see each equally often by default. What
either set is worth on the test split is told beside it, by the same recipe; nothing is chosen by that.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

EPOCHS, BATCH, PUBLISHED_EXPERTS = 50, 256, 100
#: Snapshots from a segment's start to its end.
LENGTH = 2
#: Seconds of matching between two of MTT's scores.
SCORE_EVERY_S = 10.0


@dataclass(frozen=True)
class Rates:
    """Of the published table, CIFAR-10's. `last_start`: segments begin before this snapshot."""

    steps: int
    last_start: int
    images: float
    lr: float
    lr_of_lr: float


MTT = {1: Rates(50, 2, 100.0, 0.01, 1e-7), 10: Rates(30, 20, 100.0, 0.001, 1e-5)}


def experts(problem: Any, count: int) -> tuple[list[list[Any]], float]:
    """Snapshots of so many experts, and the seconds of one."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from benchmarks.plain import plain_training

    loader = DataLoader(TensorDataset(*problem.tensors("train")), batch_size=BATCH, shuffle=True)
    draw, found, started = torch.Generator().manual_seed(0), [], time.perf_counter()
    for number in range(count):
        torch.manual_seed(number)
        net = plain_network(problem)
        steps = plain_training(net, loader, problem.ops, draw)
        snapshots = [torch.nn.utils.parameters_to_vector(net.parameters()).detach()]
        for _ in range(EPOCHS):
            for _ in range(len(loader)):
                next(steps)
            snapshots.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach())
        found.append(snapshots)
    return found, (time.perf_counter() - started) / count


def plain_network(problem: Any) -> Any:
    """Of the width that ours has."""
    from benchmarks.plain import PlainConvNet

    data = problem.dataset
    return PlainConvNet(data.channels, data.resolution, data.num_classes, problem.config.network.width)


def published_sets(problem: Any, trajectories: list[list[Any]], rates: Rates) -> Iterator[tuple[Any, Any]]:
    """MTT's set after every outer step: images and classes."""
    import torch

    from benchmarks.plain import plain_step
    from ptm_ray.core.synthetic import balanced_rows, inner_batches

    draw = torch.Generator().manual_seed(0)
    train, labels = problem.tensors("train")
    rows = balanced_rows(labels, problem.config.ipc, problem.dataset.class_names, draw)
    net, images, classes = plain_network(problem), train[rows].clone(), labels[rows]
    lr = torch.tensor(rates.lr)
    optimiser = torch.optim.SGD([{"params": [images]}, {"params": [lr], "lr": rates.lr_of_lr}], rates.images, 0.5)
    while True:
        expert = trajectories[int(torch.randint(len(trajectories), (), generator=draw))]
        start = int(torch.randint(rates.last_start, (), generator=draw))
        batches = inner_batches(len(images), BATCH, rates.steps, problem.ops, draw)
        images.grad, lr.grad = plain_step(net, expert[start], expert[start + LENGTH], images, classes, lr, batches)
        optimiser.step()
        yield images, classes


def published(problem: Any, trajectories: list[list[Any]], minutes: float) -> dict[str, Any]:
    """MTT's best score, the seconds of matching it took, how many steps there were in all, and at which of its rates.

    Where images stop being numbers it begins anew with a tenth of its rates, and only the run that lasts counts.
    """
    rates = MTT[problem.config.ipc]
    while True:
        found = _published(problem, trajectories, minutes, rates)
        if found is not None:
            return {**found, "rate_of_images": rates.images}
        rates = replace(rates, images=rates.images / 10, lr_of_lr=rates.lr_of_lr / 10)


def _published(problem: Any, trajectories: list[list[Any]], minutes: float, rates: Rates) -> dict[str, Any] | None:
    import torch
    from torch.nn.functional import one_hot

    from ptm_ray.evaluation.metrics import hits
    from ptm_ray.stages.scoring import Evaluator
    from ptm_ray.stages.selection import balanced_accuracy

    evaluator, labels = Evaluator(problem), problem.tensors("val")[1]
    best, reached, spent, scored, steps, made = 0.0, 0.0, 0.0, 0.0, 0, None
    started = time.perf_counter()
    for images, classes in published_sets(problem, trajectories, rates):
        spent += time.perf_counter() - started
        steps += 1
        if not bool(torch.isfinite(images).all()):
            return None
        if spent - scored >= SCORE_EVERY_S:
            scored = spent
            found = images.clone(), one_hot(classes, problem.dataset.num_classes).float()
            score = balanced_accuracy(evaluator.validate(found), labels)
            if score > best:
                best, reached, made = score, spent, found
        if spent > 60 * minutes:
            break
        started = time.perf_counter()
    settings = problem.config.evaluation
    tested = evaluator.test("convnet", [made], evaluator.recipe(settings.steps), range(settings.seeds))
    truth = problem.tensors("test")[1]
    test = statistics.fmean(balanced_accuracy(hits(shares, truth), truth) for shares in tested)
    return {"best": best, "reached_s": reached, "steps": steps, "test": test}


def ours(dataset: Any, ipc: int, score: float, minutes: float, natural: bool) -> dict[str, Any]:
    """Seconds until a set of ours had that score, from nothing; None where it never had."""
    import ptm_ray as ptm
    from ptm_ray.orchestrate.session import connected

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, connected():
        # No part of what a run tells of its cost.
        start_s = time.perf_counter() - started
        out = Path(scratch) / "out"
        places = {"out": out, "experts_dir": Path(scratch) / "experts"}
        settings = {"experts": {"balanced": not natural}, "evaluation": {"compare_with": ()}}
        ptm.distill(dataset, **places, ipc=ipc, budget_minutes=minutes, **settings)
        told = json.loads((out / "result.json").read_text())
    # A row is of the outer step that began then, with the set that its number of steps had made.
    ends = [*(row["elapsed_s"] for row in told["rows"]), told["cost"]["distillation_s"]]
    tried = [(found["balanced_accuracy"], ends[found["outer_step"]]) for found in told["validation"]]
    when = next((seconds for balanced, seconds in tried if balanced >= score), None)
    experts_s = start_s + told["cost"]["experts_s"]
    return {
        "best": max(balanced for balanced, _ in tried),
        "experts_s": experts_s,
        "total_s": None if when is None else experts_s + when,
        "test": told["scores"]["synthetic"]["balanced_accuracy"]["mean"],
    }


def main() -> None:
    from ptm_ray.config.files import resolve
    from ptm_ray.data.load import load_dataset
    from ptm_ray.stages.problem import Problem

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["pneumoniamnist", "colon_32"])
    parser.add_argument("--ipc", nargs="+", type=int, choices=sorted(MTT), default=sorted(MTT))
    parser.add_argument("--experts", type=int, default=5, help="that MTT has and is charged for")
    parser.add_argument("--minutes", type=float, default=10.0, help="of MTT's matching, and of ours at the most")
    parser.add_argument("--natural", action="store_true", help="our experts see classes as often as they occur")
    asked = parser.parse_args()
    record = []
    for name in asked.datasets:
        dataset = load_dataset(asked.data_root / f"{name}.npz")
        trajectories, each = experts(Problem(dataset, resolve({})), asked.experts)
        for ipc in asked.ipc:
            theirs = published(Problem(dataset, resolve({"ipc": ipc})), trajectories, asked.minutes)
            mine = ours(dataset, ipc, theirs["best"], asked.minutes, asked.natural)
            whole = each * asked.experts + theirs["reached_s"]
            as_published = each * PUBLISHED_EXPERTS + theirs["reached_s"]
            about = {"dataset": name, "ipc": ipc, "natural": asked.natural, "expert_s": each}
            record.append({**about, "mtt": theirs, "ours": mine})
            said = f"{name}, ipc {ipc}: MTT {100 * theirs['best']:.1f} % after {whole:.0f} s ({theirs['steps']} steps"
            said += f", rate of images {theirs['rate_of_images']:g}; test {100 * theirs['test']:.1f} %); ours "
            if mine["total_s"] is None:
                said += f"came to {100 * mine['best']:.1f} % at the most"
            else:
                share, of_published = mine["total_s"] / whole, mine["total_s"] / as_published
                said += f"{mine['total_s']:.0f} s, {share:.2f} of it, {of_published:.3f} with a hundred experts"
            print(f"{said} (handed on, test {100 * mine['test']:.1f} %)", flush=True)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
