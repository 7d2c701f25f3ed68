"""Processes that see no others, and no network but their own: several Rays then live side by side on one machine."""

import subprocess

#: The command that runs another alone; all that it starts ends with it.
ALONE = ("unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child")


def namespaces_allowed() -> bool:
    """Whether this user may have them, and may bring up a network in them."""
    return subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0
