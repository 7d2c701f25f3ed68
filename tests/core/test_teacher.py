"""What experts say of real images, compared with one image and one expert at a time."""

import pytest
import torch
from jaxtyping import TypeCheckError

from ptm_ray.core import nets
from ptm_ray.core.seeds import Seeds
from ptm_ray.core.teacher import correct_rows, one_hot_logits, taught_logits
from ptm_ray.errors import NotEnoughImages

CLASSES, IPC = 3, 4
NAMES = ("neutrophil", "basophil", "monocyte")


@pytest.fixture
def case():
    network = nets.build("convnet", channels=1, resolution=8, classes=CLASSES, width=4, depth=2)
    thetas = [5 * network.init(Seeds(0).stream("theta", k)) for k in range(3)]
    draw = Seeds(0).stream("images")
    images, labels = torch.randn(60, 1, 8, 8, generator=draw), torch.arange(60) % CLASSES
    return network, thetas, images, labels


def generator():
    return torch.Generator().manual_seed(0)


def test_images_that_the_expert_knows_come_first(case):
    network, thetas, images, labels = case
    rows = correct_rows(network, thetas[0], images, labels, IPC, NAMES, generator())
    assert labels[rows].tolist() == [label for label in range(CLASSES) for _ in range(IPC)]
    assert len(set(rows.tolist())) == len(rows)
    known = {row for row in range(60) if int(network.logits(thetas[0], images[row : row + 1]).argmax()) == labels[row]}
    assert 0 < len(known) < 60
    for label in range(CLASSES):
        own = rows[label * IPC : (label + 1) * IPC].tolist()
        assert len(known & set(own)) == min(IPC, sum(int(labels[row]) == label for row in known))


def test_a_class_with_too_few_images_is_refused(case):
    network, thetas, images, labels = case
    with pytest.raises(NotEnoughImages, match="'neutrophil' has 20 training images, ipc is 21"):
        correct_rows(network, thetas[0], images, labels, 21, NAMES, generator())


def test_labels_are_the_mean_logits_of_the_experts_that_are_right(case):
    network, thetas, images, labels = case
    found = taught_logits(network, thetas, images, labels, CLASSES)
    nobody = 0
    for row in range(60):
        each = [network.logits(theta, images[row : row + 1])[0] for theta in thetas]
        right = [logits for logits in each if int(logits.argmax()) == labels[row]]
        nobody += not right
        expected = torch.stack(right).mean(0) if right else one_hot_logits(labels[row : row + 1], CLASSES)[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    assert 0 < nobody < 60


def test_classes_of_another_shape_are_noticed_by_the_tests():
    with pytest.raises(TypeCheckError, match="classes"):
        one_hot_logits(torch.zeros(3, 1, dtype=torch.int64), 2)
