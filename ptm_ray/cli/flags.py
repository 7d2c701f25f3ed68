"""From flags and a settings file to one validated config."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import ValidationError

from ptm_ray.config import DistillConfig
from ptm_ray.config.base import one_line as validation_line
from ptm_ray.config.files import read_settings, resolve
from ptm_ray.errors import ConfigError

T = TypeVar("T")

#: A flag whose text says itself what happens without it.
SaysDefault = tyro.conf.arg(help_behavior_hint="")
#: A switch that is off unless given.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, SaysDefault]

#: Settings whose flags stand at the top: `--ipc`, `--schedule.kind`.
Settings = Annotated[DistillConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Places:
    """Where and with what a command runs; none of it changes the result."""

    experts_dir: Annotated[str | None, SaysDefault] = None
    """Where expert trajectories are kept and found again, a folder or an s3:// URL (default: the user's cache
    folder)."""
    data_root: Annotated[Path | None, SaysDefault] = None
    """Folder in which datasets are looked for first, and into which MedMNIST's are downloaded (default: its own)."""
    workers: Annotated[int | None, SaysDefault] = None
    """One-CPU workers (default: one for every CPU that Ray has)."""
    json: Switch = False
    """Print one JSON object as the last line of standard output."""


@dataclass(frozen=True)
class Where(Places):
    """The same for commands that take settings."""

    gpus_per_worker: Annotated[float, SaysDefault] = 0.0
    """Share of a GPU that each worker has, such as 0.25 for four workers on one (default: none, all on CPUs)."""
    config: Annotated[Path | None, SaysDefault] = None
    """Settings from a TOML file, or from a saved run's run.json or recipe.json; flags win over it."""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """What a flag is given, in either spelling, before the command line is parsed as a whole."""
    for at, word in enumerate(argv):
        if word == flag and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def base_config(argv: Sequence[str]) -> DistillConfig:
    """The settings before flags: defaults, the method's preset, the file. Flags are then laid over them."""
    path, method = value_of(argv, "--config"), value_of(argv, "--method")
    asked: dict[str, Any] = {} if method is None else {"method": method}
    return resolve(read_settings(Path(path)) if path else {}, asked)


def parse(kind: type[T], argv: Sequence[str], default: T, command: str, about: str) -> T:
    """The command line as `kind`. Raises `ConfigError`, in one line, for flags that don't parse or contradict."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=list(argv),
                default=default,
                prog=f"ptm-ray {command}",
                description=about,
            )
    except ValidationError as error:
        raise ConfigError(validation_line(DistillConfig, error)) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(unboxed(said.getvalue())) from None


def unboxed(text: str) -> str:
    """The message in one of tyro's boxes: without its frame, its repetition of the help and pydantic's internals."""
    lines = [line.strip("│╭╮╰╯ ").rstrip() for line in text.splitlines()]
    body = " ".join(line for line in lines if line and not line.startswith(("─", "For full helptext")))
    body = re.sub(r"^(\w[\w ]*?) ─+", "", body)
    body = re.sub(r"\[type=[^\]]*input_value=([^,\]]*)[^\]]*\]", r"(got \1)", body)
    body = re.sub(r"For further information visit \S+", "", body)
    body = re.sub(r"Error parsing \S*?(\w*): \d+ validation errors? for \w+ (Value error, )?", r"\1 ", body)
    return re.sub(r"(For full helptext|─).*$", "", " ".join(body.split())).strip()
