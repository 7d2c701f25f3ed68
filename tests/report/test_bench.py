"""The report of a bench: known tables give known numbers, in their places, whatever is missing."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ptm_ray.errors import DataError
from ptm_ray.evaluation.comparison import augmentation_robust_score, label_robust_score
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
        "| **ptm** | trajectory | 64.0 | 66.0 | 65.0 | 1.0 | 4 of 4 |",
        "| mtt | trajectory | 60.0 | 60.0 | 60.0 | 2.0 | 4 of 4 |",
        "| random | selection | 40.0 | 40.0 | 40.0 | 3.0 | 4 of 4 |",
        "| full data | full | 90.0 | 90.0 | 90.0 | – | 2 of 2 |",
    ]


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
    assert line(text, "**ptm**").startswith("| **ptm** | trajectory | 64.0 | 64.0 | 64.0 | 1.0 | 4 of 4 |")
    assert line(text, "mtt").endswith("| 3 of 4 |")


def test_a_method_that_has_hardly_begun_takes_no_cell_away_and_is_marked():
    rows = [*four_cells(), row("datm", "blood", 1, 0.99)]
    text = section(report(rows), "Overview")
    assert line(text, "**ptm**") == "| **ptm** | trajectory | 64.0 | 66.0 | 65.0 | 1.0 | 4 of 4 |"
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
    swapped = [r | {"method": {"ptm": "mtt", "mtt": "ptm"}.get(r["method"], r["method"])} for r in four_cells()]
    text = section(report(swapped), "The claim")
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
    assert "Not more than noise: the difference to random and mtt." in text
    assert "Too few cells to say: the difference to datm." in text


def test_a_difference_that_survives_the_correction_is_called_more_than_noise():
    rows = [r for r in six_cells() if r["method"] in ("ptm", "mtt")]
    ahead = report(rows, {"ptm": "trajectory", "mtt": "trajectory"})
    assert "More than noise at 5 % after the correction: ptm ahead of mtt." in ahead
    swapped = [r | {"method": {"ptm": "mtt", "mtt": "ptm"}[r["method"]]} for r in rows]
    behind = report(swapped, {"ptm": "trajectory", "mtt": "trajectory"})
    assert "More than noise at 5 % after the correction: ptm behind mtt." in behind


def test_seeds_of_a_cell_are_one_pair():
    rows = seeds("ptm", "blood", 1, [0.6] * 8) + seeds("mtt", "blood", 1, [0.5 + 0.002 * s for s in range(8)])
    found = line(section(report(rows), "ptm against every other method"), "mtt")
    assert found == "| mtt | 1 | +9.3 | +9.3; 1 | 1 / 0 / 0 | – | – |"


def test_conditions_stand_beside_the_unified_score_of_the_same_seeds_and_networks():
    rows = [*seeds("ptm", "blood", 1, (0.6, 0.8)), row("ptm", "blood", 1, 0.57, "published")]
    # A network that only the unified recipe has trained says nothing of the other one.
    rows += seeds("ptm", "blood", 1, (0.2, 0.2), network="vit")
    rows += seeds("datm", "blood", 1, (0.7, 0.7)) + seeds("datm", "blood", 1, (0.7, 0.7), network="vit")
    rows += seeds("datm", "blood", 1, (0.65, 0.63), condition="hard-labels")
    rows += seeds("datm", "blood", 1, (0.72, 0.74), condition="twin")
    text = section(report(rows), "Tracks and conditions")
    tracks, soft = text.split("Sets with soft labels.")
    assert line(tracks, "**ptm**") == "| **ptm** | 45.0 | 57.0 (-3.0; 1 cell) | – | – |"
    assert line(soft, "datm") == "| datm | 70.0 | 64.0 (-6.0; 1 cell) | 73.0 (+3.0; 1 cell) |"
    assert "| **ptm**" not in soft


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
    assert "| random |" not in text


def test_soft_labels_whose_twins_are_to_come_are_not_measured_against_plain_images():
    rows = [row("random", "blood", 1, 0.5), row("datm", "blood", 1, 0.8), row("full", "blood", 0, 0.9)]
    text = section(report(rows, soft_labels=["datm"]), "Robustness")
    assert line(text, "datm") == "| datm | – | – | – | – |"


def test_worst_recall_and_cost():
    rows = [row("ptm", "blood", 1, 0.6, worst_recall=0.25, peak_memory_bytes=2**30, seed=1)]
    rows += [row("ptm", "blood", 1, 0.6, worst_recall=0.35), row("ptm", "skin", 1, 0.6, distillation_s=90.0)]
    rows += [row("random", name, 1, 0.5, experts_s=0.0, distillation_s=None) for name in ("blood", "skin")]
    text = report(rows, {"ptm": "trajectory", "random": "selection"})
    assert line(section(text, "Worst-class recall"), "**ptm**") == "| **ptm** | 30.0 | 60.0 |"
    assert line(section(text, "Cost"), "**ptm**") == "| **ptm** | 30 | 75 | 100 | 1,024 | 12 | 2 |"
    assert line(section(text, "Cost"), "random") == "| random | 0 | – | 100 | 512 | 12 | 2 |"


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
