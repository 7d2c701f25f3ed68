"""`ptm-ray export`: a set as other tools take it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ptm_ray.cli.flags import Switch, parse

ABOUT = """Writes a synthetic set in a form that other tools read, into a folder of its own.

With --to pictures (the default): train/CLASS/NUMBER.png, which torchvision's ImageFolder, Keras and fastai read, and
labels.csv. Pictures have eight bits; the exact pixels stay in the set's own Parquet file.

With --to hub: the set with its card as README, which Hugging Face's load_dataset(FOLDER) reads, here or after an
upload.

  ptm-ray export runs/pneumonia pneumonia-pictures
"""


@dataclass(frozen=True)
class Export:
    """Flags of `export`."""

    set: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    """Folder or s3:// URL of a set of ours, or of its run."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write, which holds nothing yet."""
    to: Literal["pictures", "hub"] = "pictures"
    """What to write."""
    json: Switch = False
    """Print one JSON object as the last line of standard output."""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    asked = parse(Export, argv, tyro.MISSING_NONPROP, "export", ABOUT)
    from ptm_ray import api
    from ptm_ray.cli.show import last_line, say_how_it_began

    made = api.export(asked.set, asked.out, asked.to)
    print(f"{asked.to:<9}{asked.out}: {len(made.labels)} images of {len(made.class_names)} classes")
    say_how_it_began(made.recipe)
    if asked.json:
        last_line({"export": asked.out, "images": len(made.labels)})
