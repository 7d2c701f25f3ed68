"""Whatever is computed of a problem's tensors stays on its device: the same bits come of it as on the CPU."""

import pytest
import torch

from ptm_ray.config.base import merge
from ptm_ray.core import expert
from ptm_ray.core.nets import blocks, by_hand
from ptm_ray.core.replay import Replays
from ptm_ray.core.sgd import RecordedSgd
from ptm_ray.core.unroll import Plan
from ptm_ray.evaluation import train
from ptm_ray.evaluation.protocol import Job
from ptm_ray.stages import trajectory_matching
from ptm_ray.stages.experts import ExpertTrainer
from ptm_ray.stages.scoring import Evaluator
from tests.elsewhere import DEVICE, There, elsewhere
from tests.small import InMemory, small_problem
from tests.stages.test_distill import EVERYTHING, distillation
from tests.stages.test_staged_matching import STAGED


@pytest.fixture(autouse=True)
def passes_of_any_device(monkeypatch):
    """Those of a CPU alone are compiled, and round in another order; so does its block of images."""
    monkeypatch.setattr(blocks, "_compiled", lambda _: None)
    monkeypatch.setattr(by_hand, "_fused", lambda _: None)


def test_the_device_would_notice():
    with elsewhere():
        one = torch.ones(3, device=DEVICE)
        assert isinstance(one, There)
        assert isinstance(one + 1, There)
        assert not isinstance((one + 1).cpu(), There)
        assert float((one + torch.ones(())).sum()) == 6
        with pytest.raises(RuntimeError, match="two different devices"):
            one + torch.ones(3)
        with pytest.raises(RuntimeError, match="can't be changed"):
            torch.zeros(()).add_(one.sum())


SETTINGS = {
    "everything": EVERYTHING,
    "two matchers": {"matchers": 2},
    "mtt": {"method": "mtt", "images": {"init": "k-means", "optimiser": "sgd", "lr": 50.0}},
    "datm": {"method": "datm"},
    "hoptm": {"method": "hoptm", "schedule": {"kind": "random"}},
    "seqmatch": {**STAGED, "method": "seqmatch"},
    "dm": {"method": "dm"},
    "dsa": {"method": "dsa"},
    "ncfm": {"method": "ncfm"},
    "noise": {"images": {"init": "noise"}, "student": {"precision": "bfloat16"}, "experts": {"zca": True}},
}
#: There, every operation goes through Python.
FEW = {"outer_steps": 6, "student": {"steps_max": 2}, "evaluation": {"validation_steps": 5}}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_distillation(name, tmp_path, monkeypatch):
    # Graphs are weighed by their storages, which this device's tensors don't have.
    monkeypatch.setattr(trajectory_matching, "plan_for", lambda *_: Plan(1, 1))
    problem = small_problem(**merge(FEW, SETTINGS[name]))
    trajectories = InMemory(problem)
    here = distillation(problem, tmp_path / "here", trajectories=trajectories)
    list(here.run())
    with elsewhere():
        there = distillation(problem.on(DEVICE), tmp_path / "there", trajectories=trajectories)
        if name == "everything":
            # In mid-cycle another goes on from its checkpoint.
            list(there.run(stop_after=3))
            there = distillation(problem.on(DEVICE), tmp_path / "there", trajectories=trajectories)
        list(there.run())
        made = there.result()
        assert isinstance(made.images, There)
        assert torch.equal(made.images.cpu(), here.result().images)
        assert torch.equal(made.labels().cpu(), here.result().labels())
        assert there.selection.scores == here.selection.scores


@pytest.mark.parametrize("name", ["everything", "two matchers", "mtt", "seqmatch", "dm"])
def test_a_distillation_by_recordings(name, tmp_path, monkeypatch):
    """What a GPU does, here: recordings are run again where there are no graphs."""
    problem = small_problem(**merge(FEW, SETTINGS[name]))
    trajectories = InMemory(problem)
    plain = distillation(problem, tmp_path / "plain", trajectories=trajectories)
    list(plain.run())
    recorded = []

    class Noted(Replays):
        def __call__(self, *given, **more):
            recorded.append(len(given[0]))
            return super().__call__(*given, **more)

    for module in (expert, train):
        monkeypatch.setattr(module, "sgd_on", lambda _, *given: RecordedSgd(*given))
    monkeypatch.setattr(trajectory_matching, "finder", lambda network, _: Noted(network))
    again = distillation(problem, tmp_path / "recorded", trajectories=InMemory(problem))
    list(again.run())
    assert set(recorded) == {"dm": set(), "two matchers": {2}}.get(name, {1})
    torch.testing.assert_close(again.result().images, plain.result().images, rtol=1e-4, atol=1e-5)
    assert again.selection.scores == plain.selection.scores


@pytest.mark.parametrize("settings", [{}, {"balanced": False, "logit_adjustment": 1.0}, {"flat_radius": 0.01}])
def test_an_expert(settings):
    problem = small_problem(experts=settings)
    here = list(ExpertTrainer(problem).snapshots(1))
    with elsewhere():
        there = list(ExpertTrainer(problem.on(DEVICE)).snapshots(1))
    assert all((one == other).all() for one, other in zip(here, there, strict=True))


@pytest.mark.parametrize("kind", ["random", "full", "synthetic"])
def test_an_evaluation(kind):
    problem, job = small_problem(), Job(kind, 0, "convnet", (0, 1))
    arrays = (torch.randn(6, 3, 16, 16).numpy(), torch.eye(3).repeat(2, 1).numpy())
    here = Evaluator(problem).predict(job, problem.training_set(*arrays), 2)
    assert len(here) == 2
    with elsewhere():
        there = problem.on(DEVICE)
        found = Evaluator(there).predict(job, there.training_set(*arrays), 2)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, here, strict=True))
