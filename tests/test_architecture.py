"""What the layout promises: imports go one way, Ray stays at the edge, help is instant, errors travel."""

import ast
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import ptm_ray
from ptm_ray import errors
from ptm_ray.cli.main import COMMANDS

ROOT = Path(ptm_ray.__file__).parent
#: Package → what it may import of this project.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "core": {"errors"},
    "data": {"core", "store", "errors"},
    "store": {"core", "config", "errors"},
    "evaluation": {"core", "data", "errors"},
    "stages": {"core", "config", "data", "store", "evaluation", "errors"},
    "report": {"store", "evaluation", "config", "errors"},
    "orchestrate": {"core", "config", "data", "store", "evaluation", "stages", "report", "errors"},
    "api": {"config", "data", "orchestrate", "stages", "store", "errors"},
    "cli": {"config", "api", "orchestrate", "data", "report", "errors"},
}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if len(path.relative_to(ROOT).parts) > 1)
MODULES += [Path("api.py"), Path("errors.py")]


def imported(path):
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                [f"{node.module}.{name.name}" for name in node.names] if node.module == "ptm_ray" else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path):
    layer = path.parts[0].removesuffix(".py")
    used = {name.split(".")[1] for name in imported(path) if name.startswith("ptm_ray.")} - {layer, "__version__"}
    assert used <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_ray_is_imported_by_orchestrate_alone(path):
    names = {name.split(".")[0] for name in imported(path)}
    assert "ray" not in names or path.parts[0] == "orchestrate"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_doctor_asks_what_is_installed(path):
    # A job's working directory brings the sources to a cluster, where the package itself may be missing.
    assert "importlib.metadata" not in imported(path) or path == Path("cli/doctor.py")


def test_the_version_is_the_one_that_is_installed():
    assert metadata.version("ptm-ray") == ptm_ray.__version__


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_the_package_loads_and_starts_nothing():
    code = "import sys, ptm_ray; print(*sorted({'ray', 'torch', 'medmnist', 'pydantic'} & set(sys.modules)))"
    assert run_python(code).stdout.strip() == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leaves_torch_and_ray_unloaded(command):
    code = f"""
import sys
sys.argv = ["ptm-ray", "{command}", "--help"]
from ptm_ray.cli.main import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print("LOADED", *sorted({{"ray", "torch", "medmnist"}} & set(sys.modules)))
"""
    said = run_python(code)
    assert said.stdout.splitlines()[-1].strip() == "LOADED", said.stderr
    # What submit runs is another command, with flags of its own.
    assert ("--json" in said.stdout) == (command != "submit")


def test_a_whole_distillation_runs_with_ray_absent(tmp_path):
    code = f"""
import sys
sys.modules["ray"] = None
from pathlib import Path
from tests.small import small_problem
from tests.stages.test_distill import distillation
run = distillation(small_problem(outer_steps=2), Path({str(tmp_path)!r}))
print(len(list(run.run())), run.selection.kept.score > 0)
"""
    said = run_python(code)
    assert said.stdout.split() == ["2", "True"], said.stderr


def every_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 5
    return kinds


@pytest.mark.parametrize("kind", every_error())
def test_errors_travel_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("class 'basophil' has 7 images")))
    assert type(error) is kind
    assert str(error) == "class 'basophil' has 7 images"
    assert issubclass(kind, errors.PtmError)
