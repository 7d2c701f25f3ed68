"""Methods as presets of the one engine: what each changes of the defaults."""

from collections.abc import Mapping
from typing import Any

#: Method → settings that differ from the defaults.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ptm": {},
    "mtt": {
        # Segment and student were chosen on validation splits, as the defaults of ptm were. The experts are the
        # same for both, so that one buffer serves both and only the segments are compared.
        "schedule": {"kind": "random", "length": 2},
        "student": {"steps_min": 10, "steps_max": 10, "inner_lr_by_segment": False},
        "overlap": {"enabled": False},
    },
}
