"""README shows what the report says."""

from pathlib import Path

from benchmarks.readme import sections, spliced

REPORT = """# Bench small

## Overview

Best first.

| ptm | 1 |

![Cost](cost.png)

## By dataset

### blood

| ptm | 2 |

## Cost

nothing
"""
README = """# x
<!-- bench small: Overview, By dataset -->
old
<!-- end -->
<!-- bench other: Cost -->
kept
<!-- end -->
"""


def test_asked_sections_stand_between_the_marks_and_nothing_else_has_changed():
    text = spliced(README, "small", sections(REPORT), Path("docs/bench/small"))
    assert text.startswith("# x\n<!-- bench small: Overview, By dataset -->\nBest first.")
    assert "![Cost](docs/bench/small/cost.png)" in text
    assert "cost.png)\n\n#### blood" in text
    assert "nothing" not in text
    assert "old" not in text
    assert text.endswith("<!-- bench other: Cost -->\nkept\n<!-- end -->\n")
    assert spliced(text, "small", sections(REPORT), Path("docs/bench/small")) == text
