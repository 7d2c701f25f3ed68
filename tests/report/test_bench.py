"""The report of a bench: known tables give known numbers, in their places, whatever is missing."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ptm_ray.errors import DataError
from ptm_ray.evaluation.comparison import augmentation_robust_score, label_robust_score
from ptm_ray.report import bench_figures
from ptm_ray.report.bench import markdown, write_bench
from ptm_ray.report.bench_cells import Field, read_bench

KINDS = {"random": "selection", "mtt": "trajectory", "ptm": "trajectory", "datm": "trajectory", "full": "full"}
COLUMNS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "calibration_error", "worst_recall")
COSTS = {
    "experts_s": 30.0,
    "distillation_s": 60.0,
    "outer_steps": 100,
    "peak_memory_bytes": 512 * 2**20,
    "buffer_bytes": 12 * 2**20,
}


def row(method, dataset, ipc, score, condition="unified", seed=0, network="convnet", evaluation_seed=0, **others):
    """One evaluation network; every metric is the score, unless it is named."""
    return {
        "suite": "made",
        "dataset": dataset,
        "ipc": ipc,
        "method": method,
        "seed": seed,
        "network": network,
        "evaluation_seed": evaluation_seed,
        "condition": condition,
        **dict.fromkeys(COLUMNS, score),
        "recalls": [score, score],
        **COSTS,
        "error": None,
        **others,
    }


def failure(method, dataset, ipc, error, seed=0):
    empty = dict.fromkeys([*COLUMNS, *COSTS, "recalls", "network", "evaluation_seed"])
    return row(method, dataset, ipc, None, seed=seed) | empty | {"error": error}


def seeds(method, dataset, ipc, scores, **others):
    return [row(method, dataset, ipc, score, seed=seed, **others) for seed, score in enumerate(scores)]


def report(rows, kinds=KINDS, **others):
    """The text alone: pictures take their time."""
    bench = read_bench(rows, kinds, **others)
    return markdown(bench, Field.of(bench, bench.methods))


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def line(text, start):
    found = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    assert len(found) == 1, found
    return found[0]


def test_cycles_of_mitigation_are_counted_and_their_overlap_averaged():
    cycled = {"cycles": 2, "cycles_kept": 1, "overlap_before": 0.8, "overlap_after": 1.1}
    undone = {"cycles": 1, "cycles_kept": 0, "overlap_before": None, "overlap_after": None}
    rows = [
        row("ptm", "blood", 2, 0.5, **cycled),
        row("ptm", "blood", 2, 0.5, evaluation_seed=1, **cycled),
        row("ptm", "skin", 2, 0.5, **{**cycled, "overlap_before": 0.6}),
        row("ptm", "skin", 10, 0.5, **undone),
        row("mtt", "blood", 2, 0.5, cycles=0, cycles_kept=0),
    ]
    found = section(report(rows), "Overlap mitigation").splitlines()
    assert found[-2:] == ["| **ptm** | 2 | 2 of 4 | 0.70 → 1.10 |", "| **ptm** | 10 | 0 of 1 | – → – |"]
    assert "Overlap mitigation" not in report([row("mtt", "blood", 2, 0.5, cycles=0, cycles_kept=0)])


def four_cells():
    """Two datasets, two ipc; ptm is ahead of mtt by 2, 4, 6 and 8 points."""
    ahead = {("blood", 1): 0.02, ("blood", 2): 0.04, ("skin", 1): 0.06, ("skin", 2): 0.08}
    for (dataset, ipc), points in ahead.items():
        yield from seeds("ptm", dataset, ipc, (0.59 + points, 0.61 + points))
        yield from seeds("mtt", dataset, ipc, (0.59, 0.61))
        yield from seeds("random", dataset, ipc, (0.39, 0.41))
    yield from (row("full", dataset, 0, 0.9, evaluation_seed=e) for dataset in ("blood", "skin") for e in (0, 1))


def test_the_overview_has_means_by_ipc_over_all_cells_ranks_and_what_is_complete():
    text = section(report(pa.Table.from_pylist(list(four_cells()))), "Overview")
    table = [row for row in text.splitlines() if row.startswith("|")]
    assert table == [
        "| method | kind | ipc 1 | ipc 2 | all | mean rank | cells complete |",
        "|---|---|---|---|---|---|---|",
        "| **ptm** | trajectory | 64.0 ± 1.4 | 66.0 ± 1.4 | 65.0 ± 1.4 | 1.0 | 4 of 4 |",
        "| mtt | trajectory | 60.0 ± 1.4 | 60.0 ± 1.4 | 60.0 ± 1.4 | 2.0 | 4 of 4 |",
        "| random | selection | 40.0 ± 1.4 | 40.0 ± 1.4 | 40.0 ± 1.4 | 3.0 | 4 of 4 |",
        "| full data | full | 90.0 | 90.0 | 90.0 | – | 2 of 2 |",
    ]


def test_the_deviation_of_a_mean_over_cells_is_over_the_seeds_that_all_of_them_have():
    # Luck on one cell is made up for on the other: means of 0.6 and 0.6; the third seed has one cell alone.
    rows = seeds("ptm", "blood", 1, (0.5, 0.7, 0.9)) + seeds("ptm", "skin", 1, (0.7, 0.5))
    rows += [*seeds("mtt", "blood", 1, (0.5, 0.7)), row("mtt", "skin", 1, 0.6, seed=1)]
    text = section(report(rows), "Overview")
    assert line(text, "**ptm**").startswith("| **ptm** | trajectory | 65.0 ± 0.0 |")
    assert line(text, "mtt").startswith("| mtt | trajectory | 60.0 |")


def test_methods_without_a_row_are_named_and_in_no_table():
    text = report(four_cells())
    assert "3 methods on 4 cells" in text
    assert "Not run yet: datm." in text
    assert text.count("datm") == 1


def test_where_ptm_is_behind_the_other_one_says_so():
    rows = [*seeds("ptm", "skin", 1, (0.6, 0.61)), row("mtt", "skin", 1, 0.7), row("random", "skin", 1, 0.605)]
    rows += [row("full", "skin", 0, 0.9, evaluation_seed=0)]
    text = section(report(rows), "By dataset")
    assert line(text, "mtt") == "| mtt | 70.0 (one seed) ‡ |"
    assert "‡" not in line(text, "random") + line(text, "**ptm**") + line(text, "full data")
    assert "‡: ptm is behind it." in text


def test_a_cell_that_one_method_lacks_is_in_nobodys_mean():
    rows = [r for r in four_cells() if (r["method"], r["dataset"], r["ipc"]) != ("mtt", "skin", 2)]
    text = section(report(rows), "Overview")
    assert "| ipc 1 | ipc 2 (1 of 2 cells) | all (3 of 4 cells) |" in text
    assert line(text, "**ptm**").endswith("| 64.0 ± 1.4 | 64.0 ± 1.4 | 64.0 ± 1.4 | 1.0 | 4 of 4 |")
    assert line(text, "mtt").endswith("| 3 of 4 |")


def test_a_method_that_has_hardly_begun_takes_no_cell_away_and_is_marked():
    rows = [*four_cells(), row("datm", "blood", 1, 0.99)]
    text = section(report(rows), "Overview")
    assert line(text, "**ptm**").endswith("| 64.0 ± 1.4 | 66.0 ± 1.4 | 65.0 ± 1.4 | 1.0 | 4 of 4 |")
    assert line(text, "datm") == "| datm | trajectory | 99.0\\* (1) | – | 99.0\\* (1) | – | 1 of 4 |"
    assert text.index("| random |") < text.index("| datm |")


def test_full_data_that_lacks_a_dataset_is_marked():
    rows = [r for r in four_cells() if (r["method"], r["dataset"]) != ("full", "skin")]
    text = section(report(rows), "Overview")
    assert line(text, "full data") == ("| full data | full | 90.0\\* (1) | 90.0\\* (1) | 90.0\\* (2) | – | 1 of 2 |")


def test_what_is_wanted_decides_what_is_complete():
    wanted = [("ptm", "blood", 1, seed) for seed in range(3)] + [("ptm", "blood", 50, 0)]
    text = report(seeds("ptm", "blood", 1, (0.5, 0.6)), {"ptm": "trajectory"}, wanted=wanted)
    assert line(section(text, "Overview"), "**ptm**").endswith("| 0 of 2 |")
    assert line(section(text, "By dataset"), "**ptm**") == "| **ptm** | 55.0 ± 7.1 (2 of 3 seeds) | – |"


def test_a_method_is_complete_without_the_cells_that_it_is_not_wanted_in():
    text = report(four_cells(), wanted=[("mtt", "blood", 1, 0), ("mtt", "blood", 1, 1), ("mtt", "blood", 2, 2)])
    assert line(section(text, "Overview"), "mtt").endswith("| 1 of 2 |")


def test_tables_by_dataset_have_the_deviation_over_seeds_of_their_networks_means():
    # Seed means 0.6 and 0.7: the networks' own spread is none of the deviation.
    networks = {"convnet": 0.1, "resnet18": -0.1}
    rows = [r for n, by in networks.items() for r in seeds("ptm", "blood", 1, (0.6 + by, 0.7 + by), network=n)]
    rows += [row("mtt", "blood", 1, 0.5, network=n) for n in networks]
    rows += [
        row("full", "blood", 0, score, evaluation_seed=e, network=n)
        for n in networks
        for e, score in ((0, 0.8), (1, 0.9))
    ]
    text = section(report(rows), "By dataset")
    assert "| method | blood |" in text
    assert line(text, "**ptm**") == "| **ptm** | 65.0 ± 7.1 |"
    assert line(text, "mtt") == "| mtt | 50.0 (one seed) |"
    assert line(text, "full data") == "| full data | 85.0 ± 7.1 |"


def test_a_seed_without_all_networks_is_not_counted():
    rows = [
        row("ptm", "blood", 1, 0.5, network=n, seed=s) for n, s in (("convnet", 0), ("resnet18", 0), ("convnet", 1))
    ]
    rows[2]["balanced_accuracy"] = 0.9
    assert line(section(report(rows), "By dataset"), "**ptm**") == "| **ptm** | 50.0 (1 of 2 seeds) |"
    only = report(rows, networks=["convnet"])
    assert line(section(only, "By dataset"), "**ptm**") == "| **ptm** | 70.0 ± 28.3 |"


def test_the_claim_is_against_the_best_on_average_and_the_best_by_cell():
    rows = list(four_cells())
    # Worse than mtt on average, better at blood 1.
    for (dataset, ipc), score in {("blood", 1): 0.612, ("blood", 2): 0.5, ("skin", 1): 0.5, ("skin", 2): 0.5}.items():
        rows += seeds("datm", dataset, ipc, (score, score))
    text = section(report(rows), "The claim")
    assert "| over | cells | ptm − mtt | ptm − best by cell | paper states |" in text
    # 2, 4, 6, 8: mean 5, deviation 2.582, half an interval 3.18245 · 2.582 / 2; by cell 0.8, 4, 6, 8.
    assert line(text, "all ipc") == "| all ipc | 4 | +5.0 (+0.9 to +9.1) | +4.7 (-0.2 to +9.6) | +8.33 |"
    assert line(text, "ipc 2") == "| ipc 2 | 2 | +6.0 (-19.4 to +31.4) | +6.0 (-19.4 to +31.4) | +11.7 |"
    assert "ptm is ahead of mtt by 5.0 points on average; the interval leaves 0 out." in text


def test_a_negative_claim_is_shown_as_one():
    text = section(report(swapped(four_cells())), "The claim")
    assert line(text, "all ipc").startswith(
        "| all ipc | 4 | -5.0 (-9.1 to -0.9), behind | -5.0 (-9.1 to -0.9), behind |"
    )
    assert "ptm is behind mtt by 5.0 points" in text


def test_variants_of_ptm_are_no_earlier_methods():
    rows = [r for r in four_cells() if r["method"] in ("ptm", "mtt")]
    rows += [r | {"method": "ptm-from-noise", "balanced_accuracy": 0.99} for r in rows if r["method"] == "ptm"]
    kinds = {"ptm": "trajectory", "mtt": "trajectory", "ptm-from-noise": "variant"}
    assert "ptm − mtt" in section(report(rows, kinds), "The claim")


def test_without_ptm_nothing_is_claimed():
    text = report([r for r in four_cells() if r["method"] != "ptm"], {"mtt": "trajectory", "full": "full"})
    assert "## The claim" not in text
    assert "## ptm against" not in text


def six_cells():
    """ptm is ahead of mtt in all of six cells, and as often ahead of random as behind."""
    for at, dataset in enumerate("abcdef"):
        yield row("ptm", dataset, 1, 0.6)
        yield row("mtt", dataset, 1, 0.59 - 0.01 * at)
        yield row("random", dataset, 1, 0.6 + (0.01 + 0.001 * at) * (-1) ** at)
    yield row("datm", "a", 1, 0.6)


def test_pairs_are_cells_and_noise_is_told_apart():
    text = section(report(list(six_cells())), "ptm against every other method")
    # All six ahead: p = 2 / 2^6, twice that for two tests; 1, 2, .. 6 points: 3.5 ± 2.57058 · 1.8708 / sqrt(6).
    assert line(text, "mtt") == (
        "| mtt | 6 | +3.5 (+1.5 to +5.5) | +3.5 (+1.5 to +5.5); 6 | 6 / 0 / 0 | 0.031 | 0.062 |"
    )
    assert "3 / 0 / 3" in line(text, "random")
    assert line(text, "datm") == "| datm | 1 | +0.0 | +0.0; 1 | 0 / 1 / 0 | – | – |"
    assert "three seeds" not in text
    assert "Not more than noise: the difference to random and mtt." in text
    assert "Too few cells to say: the difference to datm." in text


def test_pairs_at_equal_outer_steps_are_corrected_like_the_main_figure():
    rows = list(six_cells())
    title = "ptm against every other method, at equal outer steps"
    assert title not in report(rows)
    early = [r | {"condition": "equal-steps", "balanced_accuracy": 1 - r["balanced_accuracy"]} for r in rows]
    found = line(section(report(rows + early), title), "mtt")
    behind = "-3.5 (-5.5 to -1.5), behind"
    assert found == f"| mtt | 6 | {behind} | {behind}; 6 | 0 / 0 / 6 | 0.031 | 0.062 |"


def swapped(rows):
    return [r | {"method": {"ptm": "mtt", "mtt": "ptm"}.get(r["method"], r["method"])} for r in rows]


def test_a_difference_that_survives_the_correction_is_called_more_than_noise_over_cells():
    rows = [r for r in six_cells() if r["method"] in ("ptm", "mtt")]
    firm = "More than noise over cells at 5 % after the correction"
    agrees = "of these, the interval over datasets agrees for mtt."
    assert f"{firm}: ptm ahead of mtt; {agrees}" in report(rows)
    assert f"{firm}: ptm behind mtt; {agrees}" in report(swapped(rows))


def test_what_few_datasets_can_not_say_is_not_said_of_their_cells():
    # The same six cells, of two datasets and of one: means 2 and 5 points apart, and a single one.
    rows = [r for r in six_cells() if r["method"] in ("ptm", "mtt")]
    for datasets in ("aaabbb", "aaaaaa"):
        own = [r | {"dataset": datasets[at // 2], "ipc": 1 + at // 2} for at, r in enumerate(rows)]
        assert "ptm ahead of mtt; of these, the interval over datasets agrees for none." in report(own)


def test_seeds_of_a_cell_are_one_pair():
    rows = seeds("ptm", "blood", 1, [0.6] * 8) + seeds("mtt", "blood", 1, [0.5 + 0.002 * s for s in range(8)])
    found = line(section(report(rows), "ptm against every other method"), "mtt")
    assert found == "| mtt | 1 | +9.3 | +9.3; 1 | 1 / 0 / 0 | – | – |"


def test_conditions_stand_beside_the_unified_score_of_the_same_networks():
    rows = [*seeds("ptm", "blood", 1, (0.6, 0.8)), row("ptm", "blood", 1, 0.57, "published")]
    # Networks that only the unified recipe has trained say nothing of the other one.
    rows += seeds("ptm", "blood", 1, (0.2, 0.2), network="vit") + seeds("ptm", "blood", 1, (0, 0), evaluation_seed=1)
    rows += seeds("datm", "blood", 1, (0.7, 0.7)) + seeds("datm", "blood", 1, (0.7, 0.7), network="vit")
    rows += seeds("datm", "blood", 1, (0.65, 0.63), condition="hard-labels")
    rows += seeds("datm", "blood", 1, (0.72, 0.74), condition="twin")
    text = section(report(rows), "Tracks and conditions")
    tracks, soft = text.split("Sets with soft labels.")
    assert line(tracks, "**ptm**") == "| **ptm** | 27.5 | 57.0 (-3.0; 1 cell, 1 network) | – | – |"
    assert line(soft, "datm") == ("| datm | 70.0 | 64.0 (-6.0; 1 cell, 2 networks) | 73.0 (+3.0; 1 cell, 2 networks) |")
    assert "| **ptm**" not in soft


def test_conditions_have_an_interval_over_cells():
    rows = list(four_cells())
    for at, published in enumerate(r for r in list(rows) if r["method"] == "ptm" and r["seed"] == 0):
        better = published["balanced_accuracy"] + 0.01 * (at + 1)
        rows.append({**published, "condition": "published", "balanced_accuracy": better})
    # 1, 2, 3, 4 points: 2.5 ± 3.18245 · 1.2910 / 2, over unified scores of 61, 63, 65 and 67.
    found = line(section(report(rows), "Tracks and conditions"), "**ptm**")
    assert found == "| **ptm** | 65.0 | 66.5 (+2.5, +0.4 to +4.6; 4 cells, 4 networks) | – | – |"


def test_methods_that_match_classes_have_no_learned_rate_to_be_published_at():
    rows = [
        row("dm", "blood", 1, 0.6),
        row("dm", "blood", 1, 0.7, "published"),
        row("dm", "blood", 1, 0.5, "equal-steps"),
    ]
    text = section(report(rows, {"dm": "matching"}), "Tracks and conditions")
    assert line(text, "dm") == "| dm | 60.0 | – | 50.0 (-10.0; 1 cell, 1 network) | – |"


def test_robustness_scores_follow_their_formulas_from_plain_accuracies():
    scores = {
        ("full", "unified"): 0.9,
        ("random", "unified"): 0.5,
        ("random", "no-augmentation"): 0.45,
        ("ptm", "unified"): 0.7,
        ("ptm", "no-augmentation"): 0.6,
        ("datm", "unified"): 0.8,
        ("datm", "hard-labels"): 0.65,
        ("datm", "twin"): 0.72,
    }
    rows = [
        row(m, "blood", 0 if m == "full" else 1, 0.1, condition, accuracy=accuracy)
        for (m, condition), accuracy in scores.items()
    ]
    text = section(report(rows), "Robustness")
    lrs, ars = label_robust_score(0.2, 0.2), augmentation_robust_score(0.2, 0.15)
    assert line(text, "**ptm**") == f"| **ptm** | +0.200 (1) | +0.200 (1) | {lrs:.3f} (1) | {ars:.3f} (1) |"
    assert line(text, "datm") == f"| datm | +0.250 (1) | +0.080 (1) | {label_robust_score(0.25, 0.08):.3f} (1) | – |"
    # Labels that harm random images make no image better.
    worse = [r | {"accuracy": 0.3} if r["condition"] == "twin" else r for r in rows]
    assert "| datm | +0.250 (1) | +0.300 (1) |" in report(worse)
    assert "| random |" not in text


def test_robustness_compares_networks_of_the_same_seeds():
    """Of soft labels: with hard ones and on a twin, fewer networks are trained than as the set comes."""

    def of(method, condition, accuracies, seed=0):
        ipc = 0 if method == "full" else 1
        more = {"seed": seed, "network": "convnet"}
        return [
            row(method, "blood", ipc, 0.1, condition, accuracy=accuracy, evaluation_seed=own, **more)
            for own, accuracy in enumerate(accuracies)
        ]

    rows = of("full", "unified", (0.9, 0.8, 0.7)) + of("random", "unified", (0.5, 0.4, 0.3))
    for seed in (0, 1):
        rows += of("datm", "unified", (0.8, 0.7, 0.6), seed)
        rows += of("datm", "hard-labels", (0.8,), seed) + of("datm", "twin", (0.7,), seed)
    text = section(report(rows), "Robustness")
    assert line(text, "datm") == f"| datm | +0.100 (1) | +0.100 (1) | {label_robust_score(0.1, 0.1):.3f} (1) | – |"


def test_soft_labels_whose_twins_are_to_come_are_not_measured_against_plain_images():
    rows = [row("random", "blood", 1, 0.5), row("datm", "blood", 1, 0.8), row("full", "blood", 0, 0.9)]
    text = section(report(rows, soft_labels=["datm"]), "Robustness")
    assert line(text, "datm") == "| datm | – | – | – | – |"


def test_recall_by_class():
    rows = [row("ptm", "blood", 1, 0.6, recalls=[0.2, 1.0]), row("ptm", "blood", 1, 0.6, seed=1, recalls=[0.4, 0.9])]
    rows += [row("ptm", "skin", 1, 0.6, recalls=[0.5, 0.6, 0.7]), row("random", "blood", 1, 0.5, recalls=[0.1, 0.3])]
    text = section(report(rows), "Recall by class")
    blood, skin = text.split("### skin")
    assert line(blood, "**ptm**") == "| **ptm** | 30.0 | 95.0 |"
    assert line(blood, "random") == "| random | 10.0 | 30.0 |"
    assert line(skin, "**ptm**") == "| **ptm** | 50.0 | 60.0 | 70.0 |"
    assert line(skin, "random") == "| random | – | – | – |"


def test_what_made_the_rows_is_said_and_which_are_of_other_settings():
    rows = list(four_cells())
    assert "of the code" not in report(rows)
    own = [r | {"code": "c1", "processor": "fast"} for r in rows]
    assert "Rows are of 1 state of the code, on 1 kind of processor (fast)." in report(own)
    assert "Rows are of 1 state of the code. " in report([r | {"code": "c1"} for r in rows[:-1]] + rows[-1:])
    mixed = [r | {"code": "c2", "processor": "slow"} if r["method"] == "mtt" else r for r in own]
    assert "Rows are of 2 states of the code, on 2 kinds of processor (fast; slow)." in report(mixed)
    assert "Of some rows it was not noted." in report([*mixed, row("datm", "blood", 1, 0.5)])
    stale = report(rows, outdated=[("mtt", "blood", 1, 0), ("mtt", "blood", 1, 1), ("ptm", "skin", 2, 0)])
    assert "**3 runs are of other settings, images or version than the suite asks for now** (mtt, ptm)" in stale


def test_worst_recall_and_cost():
    rows = [row("ptm", "blood", 1, 0.6, worst_recall=0.25, peak_memory_bytes=2**30, seed=1)]
    rows += [row("ptm", "blood", 1, 0.6, worst_recall=0.35), row("ptm", "skin", 1, 0.6, distillation_s=90.0)]
    rows += [row("random", name, 1, 0.5, experts_s=0.0, distillation_s=None) for name in ("blood", "skin")]
    text = report(rows, {"ptm": "trajectory", "random": "selection"})
    assert line(section(text, "Worst-class recall"), "**ptm**") == "| **ptm** | 30.0 | 60.0 |"
    assert line(section(text, "Cost"), "**ptm**") == "| **ptm** | 30 | 75 | 100 | 1,024 | 12 | 2 |"
    assert line(section(text, "Cost"), "random") == "| random | 0 | – | 100 | 512 | 12 | 2 |"


def test_experts_that_were_found_took_what_another_row_says_and_those_that_nobody_asked_for_nothing():
    known = {"experts": "a", "experts_s": 40.0}
    rows = [row("mtt", "blood", 1, 0.6, **known), row("random", "blood", 1, 0.5, **known)]
    rows += [row("ptm", "blood", 1, 0.7, experts="a", experts_s=None)]
    # As many of another kind, and another number of that kind.
    rows += [row("datm", "blood", 1, 0.5, experts="b", experts_s=None)]
    rows += [row("datm", "skin", 1, 0.5, experts="a", experts_s=None, buffer_bytes=2**20)]
    text = section(report(rows, without_experts=["random"]), "Cost")
    seconds = {m: line(text, m).split(" | ")[1] for m in ("**ptm**", "mtt", "datm", "random")}
    assert seconds == {"**ptm**": "40", "mtt": "40", "datm": "–", "random": "0"}
    assert line(text, "random").endswith("| 512 | 0 | 1 |")


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every picture that is written."""
    seen = []
    whole = bench_figures.FigureCanvasAgg.print_png

    def noted(self, *args, **others):
        seen.extend(self.figure.axes)
        return whole(self, *args, **others)

    monkeypatch.setattr(bench_figures.FigureCanvasAgg, "print_png", noted)
    return seen


def against_cost(rows, path, drawn):
    """Name → seconds of each mark, the axis' label and what stands above it."""
    bench = read_bench(rows, KINDS)
    bench_figures.against_cost(bench, Field.of(bench, bench.methods), path)
    axis = drawn[-1]
    names = {text.get_text(): float(text.xy[0]) for text in axis.texts if text.get_text() not in ("", "full data")}
    return names, axis.get_xlabel(), axis.get_title(loc="left")


def test_a_method_whose_experts_seconds_are_unknown_has_no_mark_beside_those_whose_are_known(tmp_path, drawn):
    rows = [r | ({"experts_s": None} if r["method"] == "ptm" else {}) for r in four_cells()]
    marks, label, above = against_cost(rows, tmp_path / "a.png", drawn)
    assert marks == {"mtt": 90.0, "random": 90.0}
    assert label == "seconds of experts and distillation, mean over cells"
    assert above == "No mark, experts' seconds unknown: ptm"
    rows = [r | ({"experts_s": None} if (r["method"], r["ipc"]) == ("ptm", 1) else {}) for r in four_cells()]
    marks, _, above = against_cost(rows, tmp_path / "a.png", drawn)
    assert (marks["ptm"], above) == (90.0, "Experts' seconds unknown in some cells: ptm")


def test_where_no_experts_seconds_are_known_the_picture_is_of_distillation_alone(tmp_path, drawn):
    rows = [r | {"experts_s": 0.0 if r["method"] == "random" else None} for r in four_cells()]
    marks, label, above = against_cost(rows, tmp_path / "a.png", drawn)
    assert marks == {"ptm": 60.0, "mtt": 60.0, "random": 60.0}
    assert label == "seconds of distillation, mean over cells"
    assert above == "Without experts: they were found, and what they took is unknown"
    assert against_cost(four_cells(), tmp_path / "a.png", drawn)[2] == ""


def test_failed_runs_are_listed_and_their_method_is_marked():
    error = "DivergedError: the loss is NaN | at outer step 3\n" + "trace " * 100
    rows = [r for r in four_cells() if (r["method"], r["dataset"], r["ipc"], r["seed"]) != ("mtt", "skin", 2, 1)]
    text = report([*rows, failure("mtt", "skin", 2, error, seed=1)])
    listed = section(text, "Failed").splitlines()[-1]
    assert listed.startswith(
        "- mtt on skin, ipc 2, seed 1 (unified): DivergedError: the loss is NaN | at outer step 3 "
    )
    assert len(listed) < 300
    assert line(section(text, "Overview"), "mtt†").endswith("| 3 of 4 |")
    skin = section(text, "By dataset").split("### skin")[1]
    assert line(skin, "mtt") == "| mtt | 60.0 ± 1.4 | 59.0 (1 of 2 seeds) |"
    assert "## Failed" not in report(list(four_cells()))


def test_pictures_are_drawn_with_a_line_for_each_method(tmp_path):
    written = write_bench(tmp_path, list(four_cells()), KINDS)
    assert set(written) == {path.name for path in tmp_path.iterdir()}
    assert written == ("results.md", "accuracy-over-ipc.png", "accuracy-against-cost.png")
    for name in written[1:]:
        shown = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        red = (np.abs(shown - [214, 39, 40]) < 12).all(axis=-1)
        assert red.sum() > 50, f"no ptm in {name}"
        assert f"]({name})" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    "rows",
    [
        [row("ptm", "blood", 1, 0.6)],
        [row("ptm", "blood", 1, 0.6) | dict.fromkeys(COSTS)],
        [row("full", "blood", 0, 0.9), row("random", "blood", 1, 0.5, experts_s=0.0, distillation_s=0.0)],
        [row("ptm", "blood", 1, 0.6, auc=None, worst_recall=float("nan"), calibration_error=None)],
        [row("ptm", "blood", 1, 0.6, "published")],
        [row("unheard of", "blood", 1, 0.6)],
        [r for r in four_cells() if r["method"] != "full"],
    ],
    ids=["one row", "no costs", "no cost at all", "metrics missing", "no unified", "unknown method", "no full data"],
)
def test_a_run_that_has_just_begun_has_a_report(tmp_path, rows):
    write_bench(tmp_path, rows, KINDS)
    text = (tmp_path / "results.md").read_text()
    assert "## Overview" in text
    assert "nan" not in text


@pytest.mark.parametrize("rows", [[], [failure("ptm", "blood", 1, "boom")]], ids=["empty", "failures alone"])
def test_nothing_measured_makes_text_and_no_pictures(tmp_path, rows):
    assert write_bench(tmp_path, rows, KINDS) == ("results.md",)
    assert ("boom" in (tmp_path / "results.md").read_text()) == bool(rows)


def test_suites_are_not_mixed(tmp_path):
    with pytest.raises(DataError, match="other"):
        write_bench(tmp_path, [row("ptm", "blood", 1, 0.6), row("ptm", "blood", 1, 0.6) | {"suite": "other"}], KINDS)
