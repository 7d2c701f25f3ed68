"""What lies in `cluster` is what the programs that read it expect, and lets nobody in."""

import copy
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from ptm_ray.cli.main import COMMANDS
from ptm_ray.orchestrate.session import WAIT_FOR_NODES
from tests.namespaces import ALONE, namespaces_allowed

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERAY = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
MANIFESTS = ("rayjob", "raycluster")


def manifest(name):
    return yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())


def cluster_spec(name):
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name):
    spec = cluster_spec(name)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def closed(schema):
    """Every object of the schema that names its fields has no others."""
    if isinstance(schema, dict):
        if "properties" in schema:
            assert schema.get("additionalProperties") is False, schema
        for value in schema.values():
            closed(value)
    elif isinstance(schema, list):
        for value in schema:
            closed(value)


def test_the_schema_refuses_what_it_does_not_know():
    jsonschema.Draft202012Validator.check_schema(KUBERAY)
    closed(KUBERAY)
    wrong = copy.deepcopy(manifest("rayjob"))
    wrong["spec"]["shutdownAfterJobFinish"] = wrong["spec"].pop("shutdownAfterJobFinishes")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, KUBERAY)


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_field(name):
    wrong = jsonschema.Draft202012Validator(KUBERAY).iter_errors(manifest(name))
    assert [error.message for error in wrong] == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_limits_are_not_root_and_ask_for_a_token(name):
    assert cluster_spec(name)["authOptions"] == {"mode": "token"}
    assert cluster_spec(name)["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys()


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_ray_of_the_manifests_is_the_one_tested_here(name):
    assert cluster_spec(name)["rayVersion"] == ray.__version__
    assert f":{ray.__version__}-" in (CLUSTER / "Dockerfile").read_text()


def test_the_standing_cluster_has_cpus_and_gpus_that_come_and_go():
    spec = cluster_spec("raycluster")
    assert spec["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu"}
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values())
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    # Without it, commands refuse what is not there yet.
    assert [one["name"] for one in head["env"]] == [WAIT_FOR_NODES]
    assert WAIT_FOR_NODES in (CLUSTER / "aws.yaml").read_text()
    (container,) = groups["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_network_policy_covers_the_pods_and_lets_none_in_from_elsewhere():
    policy = manifest("networkpolicy")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    for name in MANIFESTS:
        spec = cluster_spec(name)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert wanted.items() <= group["template"]["metadata"]["labels"].items()
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "a rule without a sender lets everybody in"
        assert all("podSelector" in sender for sender in rule["from"])


def test_the_job_s_command_is_accepted_as_far_as_its_data():
    """Its flags parse: what is refused is the dataset, which only the cluster has."""
    words = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "ptm_ray"]
    assert words[3] in COMMANDS
    words[words.index("pneumoniamnist")] = "no-such-dataset"
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no-such-dataset" in done.stderr


def test_the_launcher_s_file_is_accepted_by_the_ray_installed_here():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    asked = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    jsonschema.validate(asked, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**asked, "max_worker": 3}, schema)
    ports = asked["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in ports] == [(22, 22)]
    assert all(sender["CidrIp"] != "0.0.0.0/0" for rule in ports for sender in rule["IpRanges"])


def test_machines_with_gpus_run_the_image_that_was_built_for_them():
    built = (CLUSTER / "Dockerfile").read_text()
    asked = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    groups = {group["groupName"]: group for group in cluster_spec("raycluster")["workerGroupSpecs"]}
    (container,) = groups["gpu"]["template"]["spec"]["containers"]
    types = asked["available_node_types"]
    assert {types["gpu"]["docker"]["worker_image"], container["image"]} == {f"{asked['docker']['image']}-gpu"}
    assert f"-t {container['image']} " in built
    assert f"-t {asked['docker']['image']} ." in built
    assert types["gpu"]["node_config"]["ImageId"] != types["cpu"]["node_config"]["ImageId"]


def test_commands_for_many_machines_keep_experts_where_all_of_them_see_them():
    texts = [path.read_text() for path in CLUSTER.rglob("*") if path.is_file()]
    assert sum(text.count("--out /shared/") for text in texts) > 4
    assert all(text.count("--out /shared/") == text.count("--experts-dir /shared/experts") for text in texts)


def test_shell_scripts_pass_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for script in (CLUSTER / "slurm.sh", CLUSTER.parent / ".ci" / "run"):
        done = subprocess.run([shellcheck, "--enable=all", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
        assert os.access(script, os.X_OK)


#: In namespaces, as `ray symmetric-run` ends with `ray stop`, which stops every Ray that it sees.
WITH_NETWORK = (*ALONE, "bash", "-c", 'ip link set lo up; exec "$@"', "x")


def played_slurm(folder):
    """Slurm's two commands in two lines of shell, for one node; the environment that finds them first."""
    played = {
        "scontrol": 'echo "127.0.0.1"',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "python": f'exec {sys.executable} "$@"',
        "ray": f'exec {Path(sys.executable).with_name("ray")} "$@"',
    }
    for name, body in played.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1"}
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**known, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_slurm_script_asks_for_a_command(tmp_path):
    env = played_slurm(tmp_path)
    done = subprocess.run(["bash", CLUSTER / "slurm.sh"], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_the_slurm_script_runs_the_command_on_a_ray_of_its_own(tmp_path):
    """All is real but Slurm."""
    if not namespaces_allowed():
        pytest.skip("namespaces are not allowed here, and `ray stop` would stop the tests' own Ray")
    words = ["experts", "--data", "cellphantom", "--experts.count", "1", "--experts.steps", "20"]
    done = subprocess.run(
        [*WITH_NETWORK, "bash", CLUSTER / "slurm.sh", *words, "--experts-dir", tmp_path / "experts"],
        env=played_slurm(tmp_path),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "experts").glob("*/expert-*.arrow"))) == 1
