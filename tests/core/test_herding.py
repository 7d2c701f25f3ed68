"""Herding chooses what a slow search over all rows chooses, for every class of its own."""

import pytest
import torch

from ptm_ray.core import nets
from ptm_ray.core.herding import herd, herded_rows
from ptm_ray.core.synthetic import POOL, class_rows
from ptm_ray.errors import NotEnoughImages

NAMES = ("benign", "malignant")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_herd(features, count):
    """Of all rows not yet taken, the one whose joining brings the chosen rows' mean nearest to the mean of all."""
    mean, chosen = features.mean(0), []
    for _ in range(count):
        free = [row for row in range(len(features)) if row not in chosen]
        chosen.append(min(free, key=lambda row: float((features[[*chosen, row]].mean(0) - mean).norm())))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_is_the_best_one_left(seed):
    features = torch.randn(14, 6, generator=generator(seed), dtype=torch.float64)
    assert herd(features, 14).tolist() == slow_herd(features, 14)


def test_herded_rows_stand_for_their_class_better_than_random_ones():
    features = torch.randn(300, 8, generator=generator(1))
    mean = features.mean(0)
    herded = (features[herd(features, 10)].mean(0) - mean).norm()
    draws = [features[torch.randperm(300, generator=generator(seed))[:10]] for seed in range(20)]
    assert herded < 0.5 * min((drawn.mean(0) - mean).norm() for drawn in draws)


def problem(counts):
    network = nets.build("convnet", channels=1, resolution=8, classes=2, width=4, depth=2)
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.randn(len(labels), 1, 8, 8, generator=generator(2))
    return network, network.init(generator(3)), images, labels


def test_every_class_is_herded_in_its_own_features_whatever_the_order_of_the_images():
    network, theta, images, labels = problem((9, 300))
    order = torch.randperm(len(labels), generator=generator(4))
    images, labels = images[order], labels[order]
    rows = herded_rows(network, theta, images, labels, 4, NAMES, generator()).view(2, 4)
    for label in range(2):
        own = class_rows(labels, label)
        expected = own[slow_herd(network.embed(theta, images[own]), 4)]
        assert rows[label].tolist() == expected.tolist()


def test_of_a_large_class_a_random_pool_is_looked_at():
    network, theta, images, labels = problem((3, POOL + 500))
    seeds = (0, 0, 1, 2, 3, 4)
    first, again, *others = (herded_rows(network, theta, images, labels, 2, NAMES, generator(s)) for s in seeds)
    assert torch.equal(first, again)
    assert not all(torch.equal(first, other) for other in others)


def test_a_class_with_too_few_images_is_named():
    network, theta, images, labels = problem((3, 9))
    with pytest.raises(NotEnoughImages, match=r"'benign' has 3 training images, ipc is 4; lower --ipc"):
        herded_rows(network, theta, images, labels, 4, NAMES, generator())
