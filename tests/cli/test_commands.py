"""The installed command, as a user runs it in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

import ptm_ray as ptm
from ptm_ray.cli import main
from ptm_ray.cli.distill import begins_with_somebodys
from ptm_ray.cli.flags import base_config
from ptm_ray.cli.show import Bars
from ptm_ray.config.files import resolve
from ptm_ray.data.load import load_training_images
from tests.files import write_dataset
from tests.processes import environment_without_ray
from tests.small import small_dataset

COMMAND = Path(sys.executable).with_name("ptm-ray")

QUICK = """
outer_steps = 4
[network]
width = 8
depth = 2
[experts]
count = 2
steps = 10
snapshots = 5
[schedule]
end_min = 1
[student]
steps_min = 2
steps_max = 3
[evaluation]
seeds = 1
random_draws = 1
steps = 5
full_steps = 5
validate_every = 2
validation_networks = 1
validation_steps = 20
"""


def ptm_ray(*words, cwd, **env):
    """The finished command; Ray is its own unless RAY_ADDRESS is given."""
    known = {**environment_without_ray(), **env}
    return subprocess.run([COMMAND, *map(str, words)], cwd=cwd, env=known, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder but for images of one's own, a settings file, and a suite with a mistake in it."""
    root = tmp_path_factory.mktemp("user")
    write_dataset(root / "cells.npz", small_dataset())
    (root / "quick.toml").write_text(QUICK)
    (root / "suite.toml").write_text('name = "mine"\ndatasets = ["cellphantom"]\nipc = [1]\nmethods = ["ptm", "mttt"]')
    return root


@pytest.fixture(scope="module")
def distilled(folder):
    """`ptm-ray distill` on a Ray of its own."""
    words = (
        "distill --data cells.npz --config quick.toml --ipc 2 --seed 3 --out runs/a --experts-dir ex --workers 1 --json"
    )
    return ptm_ray(*words.split(), cwd=folder)


def test_distill_ends_with_one_json_line_and_exit_code_0(distilled, folder):
    assert distilled.returncode == 0, distilled.stderr
    said = json.loads(distilled.stdout.splitlines()[-1])
    assert list(said) == ["set", "scores", "cost"]
    assert list(said["scores"]) == ["synthetic", "random", "full"]
    for scores in said["scores"].values():
        assert {"mean", "std", "n"} <= scores["balanced_accuracy"].keys()
    kept = ptm.SyntheticSet.load(folder / said["set"])
    assert len(kept.labels) == 6
    assert kept.recipe["config"]["seed"] == 3
    assert kept.recipe["config"]["outer_steps"] == 4


def test_progress_goes_to_standard_error_and_the_scores_to_standard_output(distilled):
    assert "balanced accuracy" in distilled.stdout
    assert "picture" in distilled.stdout
    assert "evaluating" not in distilled.stdout
    assert "evaluating" in distilled.stderr
    assert "cells: 3 classes (" in distilled.stderr
    assert "120 training, 30 validation and 45 test images of 16×16 pixels in colour" in distilled.stderr
    assert "Traceback" not in distilled.stderr


def test_a_run_ends_with_a_warning_where_its_set_began_with_ones_own_images(distilled):
    last = distilled.stderr.splitlines()[-1]
    assert last.startswith("Warning: the images were started from real training images, which can be recognised")
    assert last.endswith("distil with --images.init noise instead.")


BEGINNINGS = [("cells.npz", "real", True), ("cells.npz", "noise", False), ("cellphantom", "real", False)]


@pytest.mark.parametrize(("data", "init", "warned"), BEGINNINGS)
def test_noise_and_cells_that_are_drawn_are_nobodys_images(data, init, warned):
    assert begins_with_somebodys(resolve({"data": data, "images": {"init": init}})) == warned


@pytest.mark.parametrize("name", ["run.json", "set/recipe.json"])
def test_what_a_run_has_written_gives_its_settings_again(distilled, folder, name):
    written = base_config(["--config", str(folder / "runs" / "a" / name)])
    assert written.model_dump(mode="json") == json.loads((folder / "runs" / "a" / "run.json").read_text())["config"]
    assert (written.ipc, written.seed, written.experts.steps) == (2, 3, 10)
    assert base_config(["--config", str(folder / "runs" / "a" / name), "--method", "mtt"]).schedule.kind == "random"


def test_experts_are_found_again_and_a_set_is_evaluated(distilled, folder, ray_cluster):
    address = {"RAY_ADDRESS": ray_cluster["address"]}
    words = "experts --data cells.npz --config quick.toml --experts-dir ex --json"
    files = {path: path.stat().st_mtime_ns for path in (folder / "ex").rglob("*.arrow")}
    assert len(files) == 2
    again = ptm_ray(*words.split(), cwd=folder, **address)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout.splitlines()[-1])
    assert {path.parent for path in files} == {folder / found["experts"]}
    assert {path: path.stat().st_mtime_ns for path in files} == files

    words = "evaluate runs/a --data cells.npz --networks convnet,vit --seeds 1 --json"
    scored = ptm_ray(*words.split(), cwd=folder, **address)
    assert scored.returncode == 0, scored.stderr
    said = json.loads(scored.stdout.splitlines()[-1])
    # Of one seed, whose mean over both is all there is.
    overall = said["scores"]["synthetic"]["accuracy"]
    assert overall.keys() == {"mean", "std", "n"}
    assert overall["n"] == 1
    assert list(said["by_network"]) == ["convnet", "vit"]
    each = [scores["synthetic"]["accuracy"]["mean"] for scores in said["by_network"].values()]
    assert overall["mean"] == pytest.approx(sum(each) / 2)


def test_a_run_that_was_interrupted_goes_on_with_the_same_command(distilled, folder, ray_cluster, wait_until):
    address = {"RAY_ADDRESS": ray_cluster["address"]}
    words = "distill --data cells.npz --config quick.toml --ipc 2 --outer-steps 100000 --out runs/b --experts-dir ex"
    command = [COMMAND, *words.split(), "--budget-minutes", "3"]
    first = subprocess.Popen(command, cwd=folder, env={**os.environ, **address}, stderr=subprocess.PIPE)
    checkpoint = folder / "runs" / "b" / "checkpoint.pt"
    wait_until(checkpoint.exists, limit_s=120)
    first.kill()
    first.communicate()
    saved = torch.load(checkpoint, weights_only=True)
    stopped_at, seconds = saved["step"], saved["elapsed_s"]
    assert stopped_at > 0
    on_experts = json.loads((folder / "runs" / "b" / "cost.json").read_text())["experts_s"]
    # Time that counts from the run's own start: there are five seconds left.
    second = ptm_ray(*words.split(), "--json", "--budget-minutes", (seconds + 5) / 60, cwd=folder, **address)
    assert second.returncode == 0, second.stderr
    cost = json.loads(second.stdout.splitlines()[-1])["cost"]
    assert cost["outer_steps"] > stopped_at
    assert seconds < cost["distillation_s"] < seconds + 20
    assert 0 < on_experts < cost["experts_s"]
    assert cost["total_s"] > cost["experts_s"] + cost["distillation_s"]


def test_a_run_that_is_told_to_end_says_how_to_go_on_and_leaves_no_process(distilled, folder, wait_until):
    words = "distill --data cells.npz --config quick.toml --ipc 2 --outer-steps 100000 --out runs/t --experts-dir ex"
    run = subprocess.Popen([COMMAND, *words.split(), "--workers", "1"], cwd=folder, stderr=subprocess.PIPE, text=True)
    wait_until((folder / "runs" / "t" / "checkpoint.pt").exists, limit_s=120)
    started = psutil.Process(run.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in started)
    run.terminate()
    _, said = run.communicate(timeout=60)
    assert run.returncode == 143
    assert said.splitlines()[-1] == "ptm-ray: interrupted; the same command goes on from the last checkpoint"
    assert "SIGTERM" not in said
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left


def test_the_smoke_suite_compares_its_methods(folder, ray_cluster, pytestconfig):
    suite = pytestconfig.rootpath / "tune_configs" / "suites" / "smoke.toml"
    address = {"RAY_ADDRESS": ray_cluster["address"]}
    said = ptm_ray("bench", suite, "--out", "bench", "--experts-dir", "ex", "--json", cwd=folder, **address)
    assert said.returncode == 0, said.stderr
    last = json.loads(said.stdout.splitlines()[-1])
    assert (last["cells"], last["failed"]) == (4, 0)
    report = (folder / last["report"]).read_text()
    for method in ("**ptm**", "dm", "random", "full data"):
        assert f"| {method} |" in report
    assert "cells: 100 %" in said.stderr


def test_flags_win_over_the_file(folder):
    bad = ptm_ray("distill", "--config", "quick.toml", "--experts.steps", "3", "--data", "cells.npz", cwd=folder)
    assert bad.returncode == 2
    assert "5 snapshots don't fit into 3 steps" in bad.stderr


BAD = {
    "no such command": (["distil"], "unknown command 'distil'; did you mean 'distill'"),
    "no such flag": (["distill", "--icp", "3"], "--ipc"),
    "no such file": (["distill", "--data", "gone.npz"], "no file or folder gone.npz"),
    "no images": (["distill", "--data", "cells.npz", "--ipc", "0"], "ipc must be 1 or more, got 0"),
    "too many images": (["distill", "--data", "cells.npz", "--ipc", "41"], "--images.init noise or real-resampled"),
    "no budget": (["distill", "--data", "cells.npz", "--budget-minutes", "0"], "must be above 0, got 0"),
    "no workers": (["distill", "--data", "cells.npz", "--workers", "0"], "0 workers asked for; give 1 or more"),
    "settings file": (["distill", "--config", "gone.toml"], "no settings file gone.toml"),
    "no set": (["evaluate", "nowhere"], "no synthetic set nowhere"),
    "network": (["evaluate", "runs/a", "--data", "cells.npz", "--networks", "resnet81"], "did you mean 'resnet18'"),
    "set of unknown data": (["evaluate", "runs/a"], "made from 'cells', which is no dataset by name; pass --data"),
    "no suite": (["bench"], "no suite given; tune_configs/suites holds some"),
    "method of a suite": (["bench", "suite.toml"], "methods.mttt, ipc 1: unknown method 'mttt'; did you mean 'mtt'"),
    "no run": (["audit", "nowhere"], "nowhere holds no finished run; give the folder that `ptm-ray distill` wrote to"),
    "run of unknown data": (["audit", "runs/a"], "made from 'cells', which is no dataset by name; pass --data"),
    "canaries": (["audit", "runs/a", "--data", "cells.npz", "--canaries", "5"], "cells can spare 30 of 120 training"),
    "no set to export": (["export", "nowhere", "x"], "no synthetic set nowhere; give the folder or URL of a set"),
    "export to a bucket": (["export", "runs/a", "s3://a/b"], "s3://a/b is no folder of this machine; export into one"),
    "export onto something": (["export", "runs/a", "runs"], "runs is not empty; choose another folder"),
    "form of an export": (["export", "runs/a", "x", "--to", "zip"], "pictures"),
    "another run": (["distill", "--data", "cells.npz", "--out", "runs/a"], "holds another run"),
    "too long a name": (["distill", "--data", "cells.npz", "--out", "x" * 300], "… can't be read (File name too long)"),
    "too long a folder of data": (["doctor", "--data-root", "x" * 300], "can't be read (File name too long); check"),
}


@pytest.mark.usefixtures("distilled")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(case, folder, monkeypatch, capsys):
    """In this process, which has imported what each command would take seconds to."""
    words, message = BAD[case]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ptm-ray", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert_refused(stop.value.code, *capsys.readouterr(), message)


@pytest.mark.usefixtures("distilled")
@pytest.mark.parametrize("case", ["no such command", "too many images"])
def test_the_installed_command_refuses_it_too(case, folder):
    words, message = BAD[case]
    said = ptm_ray(*words, cwd=folder)
    assert_refused(said.returncode, said.stdout, said.stderr, message)


def test_an_address_that_is_no_clusters_is_one_clear_line(distilled, folder):
    said = ptm_ray("experts", "--data", "cells.npz", cwd=folder, RAY_ADDRESS="http://127.0.0.1:8265")
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith("ptm-ray: no Ray cluster answers at http://127.0.0.1:8265 (")
    assert line.endswith("; check RAY_ADDRESS, or unset it")


def assert_refused(code, out, err, message):
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("ptm-ray: ")
    assert message in err


def test_a_set_is_exported_with_a_word_on_what_its_images_began_as(distilled, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    main.run(["export", "runs/a", "exported", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"export": "exported", "images": 6}
    assert "the images were started from real training images, which can be recognised" in err
    assert len(list((folder / "exported" / "train").glob("*/*.png"))) == 6
    # As another's set it is the one that it was.
    again, _ = load_training_images(Path("exported"), 16)
    made = ptm.SyntheticSet.load("runs/a/set")
    assert sorted(map(bytes, again.images)) == sorted(map(bytes, made.pixels))


def test_doctor_says_what_this_machine_has(folder):
    said = json.loads(ptm_ray("doctor", "--json", cwd=folder).stdout.splitlines()[-1])
    assert said["torch"] == torch.__version__.split("+")[0] or said["torch"] == torch.__version__
    assert said["cores"] >= 1


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["distil"]])
def test_the_module_is_the_command(folder, words):
    module = subprocess.run(
        [sys.executable, "-m", "ptm_ray", *words], cwd=folder, capture_output=True, text=True, timeout=60
    )
    ours = ptm_ray(*words, cwd=folder)
    assert (module.returncode, module.stdout, module.stderr) == (ours.returncode, ours.stdout, ours.stderr)
    assert "ptm-ray" in module.stdout + module.stderr


def test_help_names_every_command(folder):
    lines = ptm_ray("--help", cwd=folder).stdout.splitlines()
    for command, (_, about) in main.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [command, about] for line in lines), command


def test_a_reader_that_has_seen_enough_of_the_help_hears_no_complaint(folder):
    piped = f"{COMMAND} distill --help | head -n 1"
    said = subprocess.run(piped, shell=True, cwd=folder, capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith("usage: ptm-ray distill")
    assert said.stderr == ""


def test_what_others_print_while_a_command_works_is_no_result(capsys):
    def interrupted():
        with Bars() as bars:
            print("what befell a task")
            bars.update("experts", 1, 2, "1 of 2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    print("a result")
    seen = capsys.readouterr()
    assert seen.out == "a result\n"
    assert seen.err.splitlines() == ["what befell a task", "experts: 50 % (1 of 2)"]
