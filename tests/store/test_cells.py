"""The table of a benchmark, and what is kept beside it."""

import json

from ptm_ray.store.cells import CellTable
from ptm_ray.store.places import Place


def test_what_experts_took_goes_by_their_number_and_by_none_in_earlier_tables(tmp_path):
    (tmp_path / "experts.json").write_text(json.dumps({"earlier": 30.0}))
    CellTable(Place(tmp_path)).note_experts("now", 8, 40.0)
    table = CellTable(Place(tmp_path))
    assert (table.experts_s("now", 8), table.experts_s("now", 2)) == (40.0, 10.0)
    assert (table.experts_s("earlier", 2), table.experts_s("gone", 2)) == (30.0, None)
