"""Processes that tests start, as a user would; and those of their own Ray, never of another that runs beside it."""

import os

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
