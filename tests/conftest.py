"""Shapes in signatures are checked while tests run; real images are found where they lie; one Ray serves all
tests of a process."""

import functools
import inspect
import os
import secrets
import tempfile
import time
import unittest.mock
from pathlib import Path

import jaxtyping
import pytest


def checked_where_shapes_are(*, typechecker):
    """Of a function that says no shape, mypy has checked the types; the innermost loops call many of these."""

    def decorate(defined):
        said = [] if inspect.isclass(defined) else inspect.get_annotations(defined).values()
        shaped = inspect.isclass(defined) or any("Float[" in str(one) or "Int[" in str(one) for one in said)
        return jaxtyped(defined, typechecker=typechecker) if shaped else defined

    return decorate


# The hook puts a call of this in front of everything that is defined.
jaxtyping.jaxtyped, jaxtyped = checked_where_shapes_are, jaxtyping.jaxtyped
jaxtyping.install_import_hook("ptm_ray.core", "beartype.beartype").__enter__()

# Set before Ray is imported anywhere, as it reads them then. A token of each process' own, so that none of its jobs can
# end up at another's Ray unseen.
os.environ.update(
    RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1"
)
# Before triton is: a GPU's kernels run without one too, one operation after the other.
os.environ["TRITON_INTERPRET"] = "1"
# For the tests' own S3 server, which takes any.
os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_EC2_METADATA_DISABLED="true")


#: Tests that start processes and wait for them.
SLOW = ("tests/orchestrate/", "tests/cli/", "tests/cluster/")


def pytest_collection_modifyitems(items):
    """The slow ones first: what two processes have left at the end should be short, lest one of them waits."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))


@pytest.fixture(scope="session")
def ray_cluster():
    """Ray with two CPUs and its dashboard, so that jobs can be submitted; yields its addresses."""
    import ray
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    # A free port for the agent that takes jobs: two processes that share the tests have a Ray each, and with its usual
    # port the second one's jobs are refused. `ray start` has a flag for it, `ray.init` none.
    own_port = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)
    # A job asks the folder of sessions for its cluster, where `ray start` leaves the address and `ray.init` does not;
    # without it, the job is given to any Ray of this machine. Not in a folder of pytest, as sockets have short names.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sessions:
        with unittest.mock.patch.object(RayParams, "__init__", own_port):
            context = ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=True,
                dashboard_port=0,
                object_store_memory=256 * 2**20,
                log_to_driver=False,
                _temp_dir=sessions,
            )
        write_ray_address(context.address_info["gcs_address"], sessions)
        yield context.address_info
        ray.shutdown()


@pytest.fixture(scope="session")
def s3_url():
    """URLs of folders in a bucket of a real server that speaks S3, on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
        Bucket="ptm-ray-tests"
    )
    yield lambda name: f"s3://ptm-ray-tests/{name}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture(scope="session")
def wait_until():
    """Waits for a condition, asking again and again, and returns what it said; fails after the limit."""

    def wait(condition, limit_s):
        deadline = time.monotonic() + limit_s
        while not (said := condition()):
            assert time.monotonic() < deadline, f"still not so after {limit_s} s"
            time.sleep(0.2)
        return said

    return wait


@pytest.fixture(scope="session")
def real_data():
    """The folder of real medical images, npz files in MedMNIST's layout."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PTM_RAY_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set PTM_RAY_TEST_DATA to the folder that holds bccd_32.npz")
    return folder
