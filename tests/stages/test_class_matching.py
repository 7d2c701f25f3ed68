"""DC, DSA, DM and NCFM as runs: what each matches under which networks, and that all of them resume."""

from itertools import pairwise

import pytest
import torch

from ptm_ray.core.feature_matching import match_features
from ptm_ray.core.gradient_matching import match_gradients
from ptm_ray.core.unroll import roll_out
from ptm_ray.stages import class_matching
from tests.small import small_problem
from tests.stages.test_distill import distillation, without_clock

METHODS = ("dm", "dc", "dsa", "ncfm")


def run_of(folder, **settings):
    return distillation(small_problem(**{"outer_steps": 6, **settings}), folder)


@pytest.fixture
def compared(monkeypatch):
    """What every comparison was called with: θ, images, real images, draws."""
    seen = []
    for name in ("match_features", "match_gradients", "match_characteristics"):
        whole = getattr(class_matching, name)

        def noted(network, theta, images, classes, real, draws, *rest, whole=whole):
            seen.append((theta.clone(), images.clone(), real, draws))
            return whole(network, theta, images, classes, real, draws, *rest)

        monkeypatch.setattr(class_matching, name, noted)
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stops", [(1,), (3, 1)])
def test_a_run_that_was_stopped_gives_the_same_images_bit_for_bit(tmp_path, method, stops):
    settings = {"method": method, "matching": {"network_steps": 3, "train_steps": 2}}
    whole = run_of(tmp_path / "whole", **settings)
    list(whole.run())
    for stop in stops:
        list(run_of(tmp_path / "stopped", **settings).run(stop_after=stop))
    resumed = run_of(tmp_path / "stopped", **settings)
    list(resumed.run())
    assert torch.equal(resumed.learner.synthetic.images, whole.learner.synthetic.images)
    assert torch.equal(resumed.result().images, whole.result().images)
    assert without_clock(resumed) == without_clock(whole)


@pytest.mark.parametrize("method", METHODS)
def test_images_move_and_nothing_else(tmp_path, method):
    run = run_of(tmp_path, method=method)
    before = run.learner.synthetic.images.clone()
    lr = float(run.learner.synthetic.log_lr)
    rows = list(run.run())
    assert [row.skipped for row in rows] == [False] * 6
    assert not torch.equal(run.learner.synthetic.images, before)
    assert float(run.learner.synthetic.log_lr) == lr
    assert run.cycles == []


def test_the_loss_of_fixed_features_falls(tmp_path):
    """Under networks that the run has not met."""
    run = run_of(tmp_path, method="dm", outer_steps=40, images={"lr": 0.1, "init": "noise", "ema": 0.0})
    network, (images, labels) = run.problem.network(), run.problem.tensors("train")
    real = {label: images[labels == label] for label in range(3)}
    draws = class_matching.augment.siamese((), range(3), torch.Generator())

    def loss():
        now = run.learner.synthetic
        thetas = [network.init(torch.Generator().manual_seed(seed)) for seed in range(3)]
        return sum(float(match_features(network, t, now.images, now.classes, real, draws).loss) for t in thetas)

    before = loss()
    list(run.run())
    assert loss() < 0.5 * before


def test_dm_meets_a_fresh_network_at_every_outer_step_and_dc_trains_one_in_between(tmp_path, compared):
    list(run_of(tmp_path / "dm", method="dm").run())
    fresh = [theta for theta, *_ in compared]
    assert all(not torch.equal(a, b) for a, b in pairwise(fresh))
    del compared[:]
    settings = {"network_steps": 3, "train_steps": 2, "network_lr": 0.05}
    run = run_of(tmp_path / "dc", method="dc", matching=settings)
    list(run.run(stop_after=2))
    (first, *_), (second, *_) = compared
    # By the set as the first update left it.
    seeds, now = run.matcher._at.seeds, run.learner.synthetic
    # Nothing is augmented.
    batches = class_matching.inner_batches(6, 32, 2, (), seeds.stream("inner batches", 0))
    trained = roll_out(run.problem.network(), first, compared[1][1], now.labels(), 0.05, batches)
    torch.testing.assert_close(second, trained)
    list(run.run(stop_after=2))
    # The fourth outer step has a fresh one again.
    assert torch.equal(compared[3][0], run.problem.network().init(seeds.stream("matching network", 3)))


def test_dsa_shows_both_sides_one_augmentation_and_dc_none(tmp_path, compared):
    list(run_of(tmp_path / "dsa", method="dsa").run())
    assert {draw.op for *_, draws in compared for draw in draws.values()} > {""} - {""}
    assert all(draw.op and draw.strength.shape == (1, 2) for *_, draws in compared for draw in draws.values())
    del compared[:]
    list(run_of(tmp_path / "dc", method="dc").run())
    assert {draw.op for *_, draws in compared for draw in draws.values()} == {""}


def test_ncfm_s_networks_lie_between_an_expert_s_first_and_last_snapshot(tmp_path, compared):
    run = run_of(tmp_path, method="ncfm")
    list(run.run())
    source, last = run.matcher._comparison._trajectories, run.problem.experts.snapshots
    lines = [[torch.from_numpy(source.vector(e, k)) for k in (0, last)] for e in range(source.num_experts)]
    for theta, *_ in compared:
        shares = [((theta - a) @ (b - a) / (b - a).square().sum(), a, b) for a, b in lines]
        assert any(0 <= share <= 1 and torch.allclose(theta, a + share * (b - a), atol=1e-5) for share, a, b in shares)


def test_real_images_are_those_of_the_class_and_new_at_every_outer_step(tmp_path, compared):
    run = run_of(tmp_path, method="dm", matching={"real_batch": 5})
    list(run.run())
    images, labels = run.problem.tensors("train")
    rows = []
    for _, _, real, _ in compared:
        assert list(real) == [0, 1, 2]
        for label, batch in real.items():
            assert len(batch) == 5
            found = [int((images == image).flatten(1).all(1).nonzero()[0]) for image in batch]
            assert {int(labels[row]) for row in found} == {label}
            rows.append(tuple(found))
    assert len(set(rows)) == len(rows)


def test_dc_is_dsa_without_augmentation_of_what_is_compared(tmp_path, compared):
    run = run_of(tmp_path, method="dc", outer_steps=1)
    list(run.run())
    theta, images, real, draws = compared[0]
    found = match_gradients(run.problem.network(), theta, images, run.learner.synthetic.classes, real, draws)
    assert run.rows[0].loss == pytest.approx(float(found.loss))
