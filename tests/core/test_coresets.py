"""Coresets are what a slow search over all rows chooses, for every class of its own."""

import itertools

import pytest
import torch

from ptm_ray.core import nets
from ptm_ray.core.coresets import coreset_rows, herd, k_center, k_means
from ptm_ray.core.synthetic import POOL, class_rows, natural_rows
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


def slow_k_center(features, count):
    """The row nearest to the mean; then of all rows the one whose nearest among the chosen is farthest."""
    mean, rows = features.mean(0), range(len(features))
    chosen = [min(rows, key=lambda row: float((features[row] - mean).norm()))]
    while len(chosen) < count:
        to_nearest = {row: min(float((features[row] - features[one]).norm()) for one in chosen) for row in rows}
        chosen.append(max(to_nearest, key=to_nearest.get))
    return chosen


@pytest.mark.parametrize(("choice", "slow"), [(herd, slow_herd), (k_center, slow_k_center)])
@pytest.mark.parametrize("seed", range(5))
def test_each_choice_is_the_best_one_left(choice, slow, seed):
    features = torch.randn(14, 6, generator=generator(seed), dtype=torch.float64)
    assert choice(features, 14).tolist() == slow(features, 14)


def test_herded_rows_stand_for_their_class_better_than_random_ones():
    features = torch.randn(300, 8, generator=generator(1))
    mean = features.mean(0)
    herded = (features[herd(features, 10)].mean(0) - mean).norm()
    draws = [features[torch.randperm(300, generator=generator(seed))[:10]] for seed in range(20)]
    assert herded < 0.5 * min((drawn.mean(0) - mean).norm() for drawn in draws)


def test_k_means_takes_the_row_nearest_to_the_middle_of_every_cluster():
    middles = 20 * torch.eye(4)
    members = [middle + torch.randn(15, 4, generator=generator(k)) for k, middle in enumerate(middles)]
    # Where clusters are this far apart, some start finds them all.
    expected = {15 * k + int((own - own.mean(0)).norm(dim=1).argmin()) for k, own in enumerate(members)}
    found = [set(k_means(torch.cat(members), 4, generator(seed)).tolist()) for seed in range(20)]
    assert expected in found


def slow_centroids(features, count, seed):
    """Lloyd's rounds from the same random rows."""
    centroids = features[torch.randperm(len(features), generator=generator(seed))[:count]].clone()
    for _ in range(len(features) ** 2):
        nearest = [min(range(count), key=lambda k: float((row - centroids[k]).norm())) for row in features]
        for k in set(nearest):
            centroids[k] = torch.stack([row for row, own in zip(features, nearest, strict=True) if own == k]).mean(0)
    return centroids


@pytest.mark.parametrize("seed", range(5))
def test_k_means_gives_every_centroid_a_row_of_its_own_by_the_shortest_way(seed):
    features = torch.randn(7, 3, generator=generator(seed), dtype=torch.float64)
    centroids = slow_centroids(features, 3, seed)

    def way(rows):
        return float((features[list(rows)] - centroids).norm(dim=1).sum())

    # Of a cluster of two, both are as near: ways are compared, not rows.
    found = k_means(features, 3, generator(seed)).tolist()
    assert len(set(found)) == 3
    assert way(found) == pytest.approx(min(map(way, itertools.permutations(range(7), 3))), rel=1e-12)


@pytest.mark.parametrize("choice", [herd, k_center, k_means])
def test_images_that_are_all_alike_are_still_taken_once_each(choice):
    features = torch.ones(6, 3)
    features[0] = 2.0
    assert sorted(choice(features, 6, generator()).tolist()) == [0, 1, 2, 3, 4, 5]
    assert len(set(choice(features, 4, generator()).tolist())) == 4


def problem(counts):
    network = nets.build("convnet", channels=1, resolution=8, classes=2, width=4, depth=2)
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.randn(len(labels), 1, 8, 8, generator=generator(2))
    return network, network.init(generator(3)), images, labels


@pytest.mark.parametrize(("choice", "slow"), [(herd, slow_herd), (k_center, slow_k_center)])
def test_every_class_has_a_coreset_in_its_own_features_whatever_the_order_of_the_images(choice, slow):
    network, theta, images, labels = problem((9, 300))
    order = torch.randperm(len(labels), generator=generator(4))
    images, labels = images[order], labels[order]
    rows = coreset_rows(choice, network, theta, images, labels, 4, NAMES, generator()).view(2, 4)
    for label in range(2):
        own = class_rows(labels, label)
        expected = own[slow(network.embed(theta, images[own]), 4)]
        assert rows[label].tolist() == expected.tolist()


@pytest.mark.parametrize("choice", [herd, k_center, k_means])
def test_of_a_large_class_a_random_pool_is_looked_at(choice):
    network, theta, images, labels = problem((3, POOL + 500))
    seeds = (0, 0, 1, 2, 3, 4)
    case = (choice, network, theta, images, labels, 2, NAMES)
    first, again, *others = (coreset_rows(*case, generator(seed)) for seed in seeds)
    assert torch.equal(first, again)
    assert labels[first].tolist() == [0, 0, 1, 1]
    assert not all(torch.equal(first, other) for other in others)


def test_a_class_with_too_few_images_is_named():
    network, theta, images, labels = problem((3, 9))
    with pytest.raises(NotEnoughImages, match=r"'benign' has 3 training images, ipc is 4; lower --ipc"):
        coreset_rows(herd, network, theta, images, labels, 4, NAMES, generator())


def test_natural_rows_are_different_and_their_classes_as_frequent_as_all():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = [natural_rows(1000, 100, generator(seed)) for seed in range(40)]
    assert all(len(set(rows.tolist())) == 100 for rows in drawn)
    shares = torch.stack([torch.bincount(labels[rows], minlength=3) for rows in drawn]).float().mean(0)
    # Of 40 hypergeometric draws: within four standard errors.
    torch.testing.assert_close(shares, torch.tensor([90.0, 9.0, 1.0]), rtol=0, atol=1.9)
    assert any(2 not in labels[rows] for rows in drawn)
    with pytest.raises(NotEnoughImages, match="there are 1000 training images, ipc × classes is 1001; lower --ipc"):
        natural_rows(1000, 1001, generator())
