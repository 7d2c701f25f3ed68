"""Where progressive segments begin, for experts that know as many images as they are told to."""

import pytest
import torch

from ptm_ray.stages.head_start import head_start


class Knows:
    """A network whose one parameter is the share of each class's images that it knows; an image is its own rank."""

    def logits(self, theta, images):
        known = images.flatten() < theta[0]
        labels = (images.flatten() * 1000 % 10).round().long() % 2
        return torch.nn.functional.one_hot(torch.where(known, labels, 1 - labels), 2).float()


def found(knowledge, known_share, per_class, last=None):
    """The head start where snapshot k knows the share knowledge[k], the set `known_share`, of `per_class` images."""
    ranks = torch.arange(per_class).double() / per_class
    # The class is hidden in the third decimal, below any rank's own.
    images = torch.cat([ranks.mul(100).floor() / 100 + 0.001 * label for label in (0, 1)]).reshape(-1, 1, 1, 1).float()
    labels = torch.arange(2).repeat_interleave(per_class)
    known = (images.flatten() < known_share).float()

    def vector(expert, snapshot):
        return torch.tensor([knowledge[snapshot]])

    last = len(knowledge) - 1 if last is None else last
    return head_start(Knows(), vector, 2, last, images, labels, known, torch.Generator())


@pytest.mark.parametrize(
    ("knowledge", "known", "start"),
    [
        ([0.1, 0.2, 0.4, 0.6, 0.8], 0.5, 2),
        ([0.1, 0.2, 0.4, 0.6, 0.8], 0.05, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.9, 4),
        ([0.1, 0.6, 0.2, 0.2, 0.8], 0.5, 0),
    ],
)
def test_it_is_the_last_snapshot_up_to_which_experts_know_less(knowledge, known, start):
    assert found(knowledge, known, 100) == start


def test_it_goes_no_further_than_allowed():
    assert found([0.1, 0.2, 0.3, 0.4, 0.5], 0.9, 100, last=2) == 2


def test_a_lead_that_may_be_chance_is_none():
    knowledge = [0.1, 0.45, 0.45, 0.8]
    assert found(knowledge, 0.55, 100) == 2
    assert found(knowledge, 0.55, 4) == 0
