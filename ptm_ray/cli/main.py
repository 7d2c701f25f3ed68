"""`ptm-ray COMMAND …`: finds the command, turns errors into one clear line and an exit code."""

import os
import sys
from collections.abc import Callable, Sequence

from ptm_ray import __version__
from ptm_ray.cli import audit, bench, distill, doctor, evaluate, experts, export, submit, sweep
from ptm_ray.cli.flags import one_line
from ptm_ray.errors import ConfigError, DivergedError, PtmError, Terminated, WorkerFailed, did_you_mean

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "distill": (distill.main, "make a synthetic set of a dataset, and score it"),
    "experts": (experts.main, "train the experts of a dataset, which many distillations can share"),
    "evaluate": (evaluate.main, "score any synthetic set, beside random real images and all training images"),
    "sweep": (sweep.main, "search settings with Ray Tune: a table of trials, and the set of the best one"),
    "bench": (bench.main, "compare methods on several datasets under one protocol"),
    "audit": (audit.main, "ask what a distillation gives away about who was in the training data"),
    "export": (export.main, "write a set for other tools: pictures in class folders, or for the Hugging Face hub"),
    "submit": (submit.main, "run any of these as a job on a Ray cluster"),
    "doctor": (doctor.main, "show what this machine has: versions, cores, memory, GPUs, Ray, datasets"),
}
#: Those that go on where they were stopped.
GO_ON = ("distill", "experts", "sweep", "bench", "audit")


def usage() -> str:
    """The first help."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ptm-ray COMMAND [flags]      (ptm-ray COMMAND --help explains them)",
            "",
            "Distils labelled medical images into a few synthetic images per class.",
            "",
            *lines,
            "",
            "Try: ptm-ray distill --data cellphantom --ipc 10 --budget-minutes 1 --out runs/first",
        ]
    )


def run(argv: Sequence[str]) -> None:
    """Runs a command. Raises `PtmError` of some kind for whatever the user can mend."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(f"ptm-ray {__version__}")
        return
    if argv[0] not in COMMANDS:
        raise ConfigError(f"unknown command {argv[0]!r}; {did_you_mean(argv[0], COMMANDS)}")
    COMMANDS[argv[0]][0](argv[1:])


def main() -> None:
    """The console script. Exit code 2: bad input; 1: a failure while working; 130: interrupted; 141: nobody reads;
    143: told to end."""
    try:
        run(sys.argv[1:])
    except (WorkerFailed, DivergedError) as error:
        sys.exit(f"ptm-ray: {one_line(error)}")
    except PtmError as error:
        print(f"ptm-ray: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        goes_on = sys.argv[1:2] and sys.argv[1] in GO_ON
        way_on = "; the same command goes on from the last checkpoint" if goes_on else ""
        print(f"ptm-ray: interrupted{way_on}", file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except BrokenPipeError:
        # The reader has seen enough, as `head` has; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
