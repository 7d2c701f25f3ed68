"""Processes that tests start, as a user would; and those of their own Ray, never of another that runs beside it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil


def environment_without_ray() -> dict[str, str]:
    """In which a command finds no Ray, and starts its own."""
    return {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_JOB_ID")}


def workers_named(name: str) -> list[psutil.Process]:
    """Of the Ray that this process started, those whose title has `name`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def hear_interrupts() -> None:
    """As in a terminal: a suite that runs in the background of a script ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interruptible_command(words: Sequence[object], cwd: Path, address: str) -> subprocess.Popen[str]:
    """A command at a Ray that is there, which can be interrupted as by Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "ptm_ray", *map(str, words)],
        cwd=cwd,
        env={**environment_without_ray(), "RAY_ADDRESS": address},
        preexec_fn=hear_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_says_that_it_was_interrupted(command: subprocess.Popen[str]) -> None:
    """With the exit code that a shell expects, and no result."""
    out, err = command.communicate(timeout=120)
    assert command.returncode == 130, err
    assert err.splitlines()[-1] == "ptm-ray: interrupted; the same command goes on from the last checkpoint"
    assert "Traceback" not in err
    assert out == "", out
