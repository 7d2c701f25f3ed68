"""What the speed benchmark makes of what it measured."""

import json
import sys

from benchmarks import speed

RATES = {"convolution, float32": 1e9}
OTHERS = {"cores": 64, "torch": "2.0", "rates": {"convolution, float32": 5e11}}


def row(what, plain_s, ours_s):
    return {"what": what, "seconds": {"plain": plain_s, "float32": ours_s}, "flops": 1e9}


def recording(path, monkeypatch, *found, flags=()):
    """The command, on the rows that are measured now; machine, ways and seconds are made up."""
    measured = iter(found)

    def compare(task, more):
        now = next(measured)
        return {**now, "seconds": {**now["seconds"], **dict.fromkeys(more, 2)}}

    monkeypatch.setattr(speed, "rates", lambda width: RATES)
    monkeypatch.setattr(speed, "compare_training", compare)
    asked = ["--images", "--training", *map(str, range(len(found))), "--record", str(path), *flags]
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


def test_the_published_way_with_our_allocator_settings_is_measured_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    path = tmp_path / "speed.json"
    assert "plain-kept" not in recording(path, monkeypatch, row("a", 3, 1))["a"]["seconds"]
    assert "plain-kept" not in capsys.readouterr().out
    assert recording(path, monkeypatch, row("a", 3, 1), flags=["--allocator"])["a"]["seconds"]["plain-kept"] == 2
    assert "| a | plain-kept | 1.50× |" in capsys.readouterr().out
