"""MMD² against a double loop; the separate phase raises the overlap ratio."""

import pytest
import torch

from ptm_ray.core import nets
from ptm_ray.core.kernels import median_bandwidth, mmd2
from ptm_ray.core.overlap import (
    Cycle,
    Phase,
    next_phase,
    overlap_ratio,
    reference,
    references,
    separation_gradient,
    split,
)
from tests.reference.kernels import mmd2_by_double_loop


def points(n, seed, features=3, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=draw, dtype=torch.float64) + shift


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd2_agrees_with_a_double_loop(unbiased):
    x, y = points(5, 0), points(7, 1, shift=0.5)
    bandwidth = median_bandwidth(x)
    ours = mmd2(x, y, bandwidth, unbiased=unbiased)
    expected = mmd2_by_double_loop(x, y, bandwidth, unbiased)
    torch.testing.assert_close(float(ours), expected, rtol=1e-12, atol=1e-14)


def test_unbiased_mmd2_averages_to_zero_over_halves_of_one_distribution():
    whole = points(4000, 2)
    bandwidth = median_bandwidth(whole[:200])
    numbers = torch.stack(
        [mmd2(whole[i : i + 10], whole[i + 10 : i + 20], bandwidth, unbiased=True) for i in range(0, 4000, 20)]
    )
    standard_error = numbers.std() / len(numbers) ** 0.5
    assert abs(numbers.mean()) < 3 * standard_error
    assert numbers.min() < 0


def test_biased_mmd2_exists_at_one_point_a_side_and_the_unbiased_refuses_it():
    x, y = points(1, 0), points(1, 1)
    assert mmd2(x, y, torch.tensor(1.0, dtype=torch.float64)) > 0
    with pytest.raises(ValueError, match="two points a side"):
        mmd2(x, y, torch.tensor(1.0, dtype=torch.float64), unbiased=True)


def test_a_reference_of_smaller_halves_is_that_of_halves_of_the_size_asked_for():
    """Biased MMD² of halves of one kind falls as one over their size."""
    large, small = (
        torch.stack([reference(points(n, seed), 60, 8, torch.Generator().manual_seed(0)).mmd2 for seed in range(200)])
        for n in (120, 40)
    )
    assert float(small.mean() / large.mean()) == pytest.approx(1, abs=0.1)


def test_halves_are_disjoint_equal_and_drawn_anew():
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    draw = torch.Generator().manual_seed(0)
    first, second = split(classes, draw), split(classes, draw)
    for halves in (first, second):
        assert not set(halves.moving.tolist()) & set(halves.standing.tolist())
        assert classes[halves.moving].bincount().tolist() == [2, 2]
        assert classes[halves.standing].bincount().tolist() == [2, 2]
    assert set(first.moving.tolist()) != set(second.moving.tolist())


def test_one_image_per_class_has_nothing_to_split():
    with pytest.raises(ValueError, match="nothing to split"):
        split(torch.tensor([0, 1]), torch.Generator())


def separation_case():
    draw = torch.Generator().manual_seed(0)
    network = nets.build("convnet", channels=1, resolution=8, classes=2, width=8, depth=2)
    theta = network.init(draw)
    real = {label: torch.randn(24, 1, 8, 8, generator=draw) for label in (0, 1)}
    # Synthetic images that have drifted together: one image of each class with a little noise.
    images = torch.cat([real[label][:1] + 0.05 * torch.randn(6, 1, 8, 8, generator=draw) for label in (0, 1)])
    classes = torch.tensor([0] * 6 + [1] * 6)
    known = references(network, theta, real, 3, draw)
    return network, theta, images, classes, split(classes, draw), known


def test_random_real_halves_have_a_ratio_near_one_and_drifted_images_one_far_below():
    network, theta, images, classes, halves, known = separation_case()
    assert float(overlap_ratio(network, theta, images, classes, halves, known)) < 0.2
    draw = torch.Generator().manual_seed(9)
    fresh = [
        float(overlap_ratio(network, theta, torch.randn(12, 1, 8, 8, generator=draw), classes, halves, known))
        for _ in range(10)
    ]
    assert 0.7 < sum(fresh) / 10 < 1.4


def test_climbing_the_separation_gradient_raises_the_overlap_ratio():
    network, theta, images, classes, halves, known = separation_case()
    before, _ = separation_gradient(network, theta, images, classes, halves, known)
    for _ in range(20):
        _, apart = separation_gradient(network, theta, images, classes, halves, known)
        images[halves.moving] += 0.05 * apart[halves.moving].sign()
    after, _ = separation_gradient(network, theta, images, classes, halves, known)
    assert after > 3 * before


def test_a_cycle_separates_retrains_and_returns_to_matching():
    cycle, phases = Cycle(Phase.MATCH, 1), []
    cycle = next_phase(cycle, 2, 3, 5, start=True)
    for _ in range(8):
        phases.append(cycle.phase)
        cycle = next_phase(cycle, 2, 3, 5, start=False)
    assert phases == ["separate"] * 2 + ["retrain"] * 3 + ["match"] * 3


def test_a_cycle_without_retraining_is_over_once_it_has_separated():
    cycle = next_phase(Cycle(Phase.MATCH, 1), 2, 0, 5, start=True)
    phases = []
    for _ in range(4):
        phases.append(cycle.phase)
        cycle = next_phase(cycle, 2, 0, 5, start=False)
    assert phases == ["separate"] * 2 + ["match"] * 2
