"""The two sets of the `mdd` suite that are folders: from what one downloads to train, val and test folders.

    python -m benchmarks.prepare breakhis BreaKHis_v1 DATA_ROOT
    python -m benchmarks.prepare covid19_cxr COVID-19_Radiography_Dataset DATA_ROOT

makes DATA_ROOT/breakhis or DATA_ROOT/covid19_cxr, of links to the files. What an image is split by (a patient, or the
file where there are no patients) goes by its SHA-256 into train (70 %), val (10 %) or test (20 %): the same everywhere,
and nothing to be kept.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

#: Shares of train and val; the rest is test.
TRAIN, VAL = 0.7, 0.1
#: SOB_B_A-14-22549AB-40-001.png: benign, adenosis, year and slide (a patient), magnification, number.
BREAKHIS = re.compile(r"SOB_([BM])_[A-Z]+-(\d+-\w+)-40-\d+\.png")


def split_of(unit: str) -> str:
    """The part that everything of this unit belongs to."""
    share = int(hashlib.sha256(unit.encode()).hexdigest()[:12], 16) / 16**12
    if share < TRAIN:
        return "train"
    return "val" if share < TRAIN + VAL else "test"


def breakhis(source: Path) -> Iterator[tuple[Path, str, str]]:
    """File, class and unit of every image at 40×, by patient."""
    for path in sorted(source.rglob("*.png")):
        if named := BREAKHIS.fullmatch(path.name):
            yield path, {"B": "benign", "M": "malignant"}[named[1]], named[2]


def covid19_cxr(source: Path) -> Iterator[tuple[Path, str, str]]:
    """File, class and unit of every image; its lung masks are left out."""
    for path in sorted(source.glob("*/images/*.png")):
        name = path.parents[1].name
        yield path, name.lower().replace(" ", "_"), f"{name}/{path.name}"


SETS = {"breakhis": breakhis, "covid19_cxr": covid19_cxr}


def arrange(name: str, source: Path, root: Path) -> Counter[tuple[str, str]]:
    """Links in root / name; images of each part and class. An image that is there already stays."""
    counts: Counter[tuple[str, str]] = Counter()
    for path, label, unit in SETS[name](source):
        part = split_of(unit)
        link = root / name / part / label / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.absolute())
        counts[part, label] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path, help="the folder that was downloaded and unpacked")
    parser.add_argument("root", type=Path, help="where --data-root will look")
    asked = parser.parse_args()
    counts = arrange(asked.name, asked.source, asked.root)
    if not counts:
        sys.exit(f"{asked.source} holds no image of {asked.name}; give the folder as it was unpacked")
    for (part, label), count in sorted(counts.items()):
        print(f"{part:5}  {label:16}  {count}")


if __name__ == "__main__":
    main()
