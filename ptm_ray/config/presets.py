"""Methods as presets of the one engine: what each changes of the defaults."""

from collections.abc import Mapping
from typing import Any

#: Method → settings that differ from the defaults.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ptm": {},
    "mtt": {
        # Its experts' published rate, and snapshots as even as its epochs. Segment and student were chosen on
        # validation splits, as the defaults of ptm were.
        "experts": {"lr": 0.01, "spacing": 1.0},
        "schedule": {"kind": "random", "length": 2},
        "student": {"steps_min": 10, "steps_max": 10},
        "overlap": {"enabled": False},
    },
}
