"""Methods as presets of the one engine: what each changes of the defaults."""

from collections.abc import Mapping
from typing import Any

#: Method → settings that differ from the defaults.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ptm": {},
    "mtt": {
        # Evenly spaced, as its epochs are: equally many snapshots are then equally much training wherever they lie.
        "experts": {"spacing": 1.0},
        "schedule": {"kind": "random", "length": 2},
        "student": {"steps_min": 20, "steps_max": 20},
        "overlap": {"enabled": False},
    },
}
