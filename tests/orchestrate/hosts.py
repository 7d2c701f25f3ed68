"""Three Ray nodes and a job on the first: `python hosts.py namespaces|one-machine FOLDER`. Not a test itself.

With `namespaces`, every node is a host of its own: a network namespace with an address on a bridge, and its own folder
of sessions. That must run in namespaces of its own, so that everything ends with it. Else it is Ray's test cluster.

The job is `job_on_hosts.py FOLDER`. Where it makes the file `cut`, the third host is cut off: its link goes down (in
Ray's test cluster: its node is killed). It ends with the job's exit code.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

HOSTS = (1, 2, 3)
PORT = 6379
JOB = Path(__file__).with_name("job_on_hosts.py")
RAY = str(Path(sys.executable).with_name("ray"))
#: Seconds until a host that does not answer counts as lost are 65 by default.
NOTICE_SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=sys.stderr)


def address(host: int) -> str:
    return f"10.77.0.{host}"


def on(host: int, *words: str) -> list[str]:
    """The command that runs another on a host, with that host's own folder for Ray's sessions."""
    own = 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec "$@"'
    return ["ip", "netns", "exec", f"host{host}", "bash", "-c", own, "x", *words]


class Namespaces:
    """Hosts on a bridge."""

    def start(self) -> str:
        # Names of hosts are files; these are of this run alone.
        run("mkdir", "-p", "/run/netns")
        run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "link", "set", "bridge", "up")
        for host in HOSTS:
            run("ip", "netns", "add", f"host{host}")
            run("ip", "link", "add", f"link{host}", "type", "veth", "peer", "name", "eth0", "netns", f"host{host}")
            run("ip", "link", "set", f"link{host}", "master", "bridge", "up")
            run("ip", "-n", f"host{host}", "address", "add", f"{address(host)}/24", "dev", "eth0")
            run("ip", "-n", f"host{host}", "link", "set", "eth0", "up")
            run("ip", "-n", f"host{host}", "link", "set", "lo", "up")
        # A node and, on the first, the job share its folder of sessions: hence one process for both.
        common = ["--num-cpus", "1", "--object-store-memory", str(128 * 2**20), "--disable-usage-stats", "--block"]
        head = ["start", "--head", "--include-dashboard=false", f"--port={PORT}", f"--node-ip-address={address(1)}"]
        script = f'"{RAY}" {" ".join([*head, *common])} 1>&2 & exec sleep infinity'
        self._first = subprocess.Popen(on(1, "bash", "-c", script), env={**os.environ, **NOTICE_SOON})
        time.sleep(6)
        for host in HOSTS[1:]:
            join = ["start", f"--address={address(1)}:{PORT}", f"--node-ip-address={address(host)}"]
            subprocess.Popen(on(host, RAY, *join, *common), stdout=sys.stderr)
        return f"{address(1)}:{PORT}"

    def job(self, *words: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        """On the first host, in its folders."""
        return subprocess.Popen(["nsenter", "-t", str(self._first.pid), "-n", "-m", *words], env=env)

    def cut(self) -> None:
        run("ip", "link", "set", f"link{HOSTS[-1]}", "down")


class OneMachine:
    """Ray's own cluster for tests: several nodes at one address."""

    def start(self) -> str:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in HOSTS[1:]]
        return str(self._cluster.address)

    def job(self, *words: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, env=env)

    def cut(self) -> None:
        self._cluster.remove_node(self._nodes[-1], allow_graceful=False)


def main(kind: str, folder: Path) -> int:
    hosts = Namespaces() if kind == "namespaces" else OneMachine()
    env = {**os.environ, "RAY_ADDRESS": hosts.start(), "PYTHONPATH": str(Path(__file__).parents[2])}
    job = hosts.job(sys.executable, str(JOB), str(folder), env=env)
    while job.poll() is None:
        if (folder / "cut").exists():
            hosts.cut()
            (folder / "cut").rename(folder / "was-cut")
        time.sleep(0.2)
    return job.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
