"""What the speed benchmark makes of what it measured."""

import json
import sys

from benchmarks import speed

RATES = {"convolution, float32": 1e9}
OTHERS = {"cores": 64, "torch": "2.0", "rates": {"convolution, float32": 5e11}}


def row(what, plain_s, ours_s):
    return {"what": what, "seconds": {"plain": plain_s, "float32": ours_s}, "flops": 1e9}


def recording(path, monkeypatch, *found):
    """The command, on the rows that are measured now; the machine's rates are given."""
    measured = iter(found)
    monkeypatch.setattr(speed, "rates", lambda width: RATES)
    monkeypatch.setattr(speed, "compare_training", lambda task: next(measured))
    asked = ["--images", "--training", *map(str, range(len(found))), "--record", str(path)]
    monkeypatch.setattr(sys, "argv", ["speed", *asked])
    speed.main()
    return {kept["what"]: kept for kept in json.loads(path.read_text())["rows"]}


def test_rows_that_stay_in_a_record_keep_the_machine_that_they_were_measured_on(tmp_path, monkeypatch):
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"rows": [row("a", 4, 2), row("b", 9, 3)], "machine": OTHERS}))
    for _ in range(2):
        kept = recording(path, monkeypatch, row("b", 8, 1))
        assert list(kept) == ["a", "b"]
        assert kept["a"] == {**row("a", 4, 2), "machine": OTHERS}
        assert kept["b"]["machine"]["rates"] == RATES
        assert kept["b"]["seconds"]["plain"] == 8
