"""Tables of a bench: the same sets trained on in other ways, and what that says of labels and augmentation."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from ptm_ray.evaluation.comparison import augmentation_robust_score, label_robust_score, paired_difference
from ptm_ray.report.bench_cells import (
    FULL,
    HARD_LABELS,
    MATCHING,
    NO_AUGMENTATION,
    PUBLISHED,
    RANDOM,
    TWIN,
    UNIFIED,
    Average,
    Bench,
    Cell,
    Field,
)
from ptm_ray.report.bench_claims import interval
from ptm_ray.report.bench_tables import NONE, counted, name, percent
from ptm_ray.report.tables import table


def conditions(bench: Bench, field: Field) -> list[str]:
    """The same sets trained on in other ways, each beside the unified score of the same cells, seeds and networks."""
    order = field.ordered(bench)
    lines = [
        "Mean balanced accuracy in percent. `published`: the same set, trained on at its own learned inner lr, which "
        "methods that match classes have not. `equal-steps`: the set after a number of outer steps that is the same "
        "for every method. `no-augmentation`: unified, without augmentation. In brackets: points against unified over "
        "networks of the same seeds alone (unified is often the mean of more), with the 95 % interval that the cells' "
        "differences give, and how many cells and networks. Compare along rows; between rows only where the cells are "
        "the same.",
        "",
        *_beside_unified(bench, order, UNIFIED, (PUBLISHED, "equal-steps", NO_AUGMENTATION)),
    ]
    soft = [method for method in order if method in bench.soft]
    if soft:
        lines += [
            "",
            "Sets with soft labels. `hard-labels`: their labels replaced by the class; `twin`: random real images with "
            "the set's labels. Where the twin is as good, the gain is the labels' and not the images'.",
            "",
            *_beside_unified(bench, soft, "unified (soft labels)", (HARD_LABELS, TWIN)),
        ]
    return lines


def _beside_unified(bench: Bench, methods: list[str], unified: str, others: tuple[str, ...]) -> list[str]:
    rows = [[name(bench, m), percent(_own(bench, m)), *(_against(bench, m, c) for c in others)] for m in methods]
    return table(["method", unified, *others], rows)


def _own(bench: Bench, method: str) -> Average | None:
    """Over all cells that it has; marked where it lacks some."""
    found = [v for cell in bench.own_cells(method) if (v := bench.mean(method, cell)) is not None]
    return Average(statistics.fmean(found), len(found), len(found) < len(bench.own_cells(method))) if found else None


def _against(bench: Bench, method: str, condition: str) -> str:
    pairs = [pair for cell in bench.own_cells(method) if (pair := bench.paired(method, cell, condition)) is not None]
    # Earlier tables have such rows of methods that learn no inner lr.
    if not pairs or (condition == PUBLISHED and bench.kinds[method] == MATCHING):
        return NONE
    difference = paired_difference([100 * pair.other for pair in pairs], [100 * pair.unified for pair in pairs])
    over = f"{counted(len(pairs))}, {counted(sum(pair.networks for pair in pairs), 'network')}"
    other = statistics.fmean(100 * pair.other for pair in pairs)
    return f"{other:.1f} ({difference.mean:+z.1f}{interval(difference, ', {}')}; {over})"


def robustness(bench: Bench, field: Field) -> list[str]:
    """HLR, IOR, LRS and ARS of every method but random images and full data, which they are measured against."""
    rows = []
    for method in (m for m in field.ordered(bench) if m != RANDOM and bench.kinds[m] != FULL):
        found = [_scores(bench, method, cell) for cell in bench.cells]
        shown = [_over_cells([scores[at] for scores in found], sign) for at, sign in enumerate(("+z", "+z", "", ""))]
        with_labels = method in bench.soft and shown[3] != NONE
        rows.append([name(bench, method), *shown[:3], shown[3] + ("‡" if with_labels else "")])
    return [
        "From plain accuracies as fractions, by cell, then averaged; in brackets: the cells. HLR = full data − the set "
        "with hard labels (less is better). IOR = the set as it comes − random real images: the method `random`, or "
        "where labels are soft the twin if that is better; all are then over the evaluation seeds that they share. "
        "LRS = (eᵃ − e⁻¹) / (e − e⁻¹) with a = ½ IOR − ½ HLR; 0.269 is a = 0. ARS is the same form with a = ½ gain "
        "with augmentation + ½ gain without, both over the method `random`. ‡: no twin is trained without "
        "augmentation, so it holds what soft labels gain.",
        "",
        *table(["method", "HLR", "IOR", "LRS", "ARS"], rows),
    ]


def _over_cells(values: Sequence[float | None], sign: str) -> str:
    found = [value for value in values if value is not None]
    return f"{statistics.fmean(found):{sign}.3f} ({len(found)})" if found else NONE


def _scores(bench: Bench, method: str, cell: Cell) -> tuple[float | None, ...]:
    """HLR, IOR, LRS and ARS, fractions; None where a part of them is missing."""
    soft = method in bench.soft
    networks = bench.networks_of(UNIFIED, *((HARD_LABELS, TWIN) if soft else ()))
    # Fewer networks are trained with other labels than as the set comes: those that have both are compared.
    seeds = bench.evaluation_seeds(method, cell, UNIFIED, HARD_LABELS, TWIN) if soft else None
    accuracy = partial(bench.mean, cell=cell, metric="accuracy", networks=networks, evaluation_seeds=seeds)
    hlr = _minus(accuracy(bench.full), accuracy(method, condition=HARD_LABELS if soft else UNIFIED))
    ior = _minus(accuracy(method), _of_random(accuracy, method, soft))
    lrs = None if hlr is None or ior is None else label_robust_score(hlr, ior)
    return hlr, ior, lrs, _augmentation_score(bench, method, cell)


def _of_random(accuracy: Callable[..., float | None], method: str, soft: bool) -> float | None:
    """Of random images: as they are or, where that is more, with the set's soft labels, which may harm them."""
    plain = accuracy(RANDOM)
    if not soft:
        return plain
    twin = accuracy(method, condition=TWIN)
    return None if twin is None else max(twin, twin if plain is None else plain)


def _augmentation_score(bench: Bench, method: str, cell: Cell) -> float | None:
    networks = bench.networks_of(UNIFIED, NO_AUGMENTATION)
    accuracy = partial(bench.mean, cell=cell, metric="accuracy", networks=networks)
    gain, gain_without = (
        _minus(accuracy(method, condition=condition), accuracy(RANDOM, condition=condition))
        for condition in (UNIFIED, NO_AUGMENTATION)
    )
    return None if gain is None or gain_without is None else augmentation_robust_score(gain, gain_without)


def _minus(more: float | None, less: float | None) -> float | None:
    return None if more is None or less is None else more - less
