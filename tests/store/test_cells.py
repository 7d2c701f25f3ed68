"""The table of a benchmark, and what is kept beside it."""

import json

from ptm_ray.store.cells import CellTable
from ptm_ray.store.places import Place


def cell(seed, **more):
    return [{"dataset": "small", "ipc": 1, "method": "ptm", "seed": seed, "fingerprint": "f", **more}]


def test_two_calls_on_one_folder_keep_each_other_s_cells(tmp_path):
    first, second = CellTable(Place(tmp_path)), CellTable(Place(tmp_path))
    first.put(cell(0))
    second.put(cell(1))
    first.put(cell(2))
    first.put(cell(1, accuracy=0.5))
    first.note_experts("a", 2, 1.0)
    second.note_experts("b", 2, 2.0)
    again = CellTable(Place(tmp_path))
    assert [(row["seed"], row["accuracy"]) for row in again.rows] == [(0, None), (1, 0.5), (2, None)]
    assert (again.experts_s("a", 2), again.experts_s("b", 2)) == (1.0, 2.0)


def test_what_experts_took_goes_by_their_number_and_by_none_in_earlier_tables(tmp_path):
    (tmp_path / "experts.json").write_text(json.dumps({"earlier": 30.0}))
    CellTable(Place(tmp_path)).note_experts("now", 6, 32.0)
    CellTable(Place(tmp_path)).note_experts("now", 2, 8.0)
    table = CellTable(Place(tmp_path))
    assert (table.experts_s("now", 8), table.experts_s("now", 2)) == (40.0, 10.0)
    assert (table.experts_s("earlier", 2), table.experts_s("gone", 2)) == (30.0, None)
