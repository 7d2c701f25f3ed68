"""Processes of the tests' own Ray, to be killed; never those of another that runs beside it."""

import psutil


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
