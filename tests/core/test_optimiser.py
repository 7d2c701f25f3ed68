"""Against torch's own, bit for bit: sparse gradients, several rates, states that are copied."""

import pytest
import torch

from ptm_ray.core.optimiser import BETAS, Optimiser

RATES = (0.1, 0.003, 2.0)
REFERENCE = {
    "adam": lambda groups: torch.optim.Adam(groups, betas=BETAS),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.5),
}


def gradients(step):
    """Of three parameters; the last one has none at every other step."""
    generator = torch.Generator().manual_seed(step)
    drawn = [torch.randn(shape, generator=generator) for shape in ((4, 3), (), (5,))]
    return [*drawn[:2], drawn[2] if step % 2 else None]


def start():
    return [torch.ones(4, 3), torch.zeros(()), torch.full((5,), 2.0)]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_it_moves_as_torch_s_own_does(kind):
    ours, theirs = start(), start()
    optimiser = Optimiser(kind, list(zip(ours, RATES, strict=True)))
    reference = REFERENCE[kind]([{"params": [p], "lr": lr} for p, lr in zip(theirs, RATES, strict=True)])
    for step in range(7):
        optimiser.step(gradients(step))
        for param, gradient in zip(theirs, gradients(step), strict=True):
            param.grad = gradient
        reference.step()
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True)), step
    assert not any(torch.equal(*pair) for pair in zip(ours, start(), strict=True))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_rows_that_stand_keep_their_place_and_their_momentum(kind):
    drawn = [torch.randn(4, 3, generator=torch.Generator().manual_seed(step)) for step in range(6)]
    moving, standing = torch.tensor([0, 2]), torch.tensor([1, 3])
    whole, part = torch.ones(4, 3), torch.ones(2, 3)
    optimiser, of_part = Optimiser(kind, [(whole, 0.1)]), Optimiser(kind, [(part, 0.1)])
    for step, gradient in enumerate(drawn):
        before, held = whole.clone(), optimiser.state_dict()
        only = moving if step % 2 == 0 else None
        optimiser.step([gradient], only)
        of_part.step([gradient[moving]])
        assert torch.equal(whole[moving], part)
        if only is None:
            continue
        assert torch.equal(whole[standing], before[standing])
        for name in ("mean", "square", "velocity"):
            now = optimiser.state_dict()[0].get(name)
            if now is not None and held:
                assert torch.equal(now[standing], held[0][name][standing]), name
    assert not torch.equal(whole[standing], torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_rows_that_move_later_than_others_move_as_if_they_were_alone(kind):
    drawn = [torch.randn(4, 3, generator=torch.Generator().manual_seed(step)) for step in range(60)]
    first, later = torch.tensor([0, 2]), torch.tensor([1, 3])
    whole, part = torch.ones(4, 3), torch.ones(2, 3)
    optimiser, of_part = Optimiser(kind, [(whole, 0.1)]), Optimiser(kind, [(part, 0.1)])
    for gradient in drawn[:40]:
        optimiser.step([gradient], first)
    assert torch.equal(whole[later], part)
    for step, gradient in enumerate(drawn[40:]):
        # Together with the others now and then: rows of one parameter that were moved unequally often.
        optimiser.step([gradient], later if step % 3 else None)
        of_part.step([gradient[later]])
        assert torch.equal(whole[later], part), step


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_state_is_a_copy_and_goes_on_as_the_one_it_was_taken_from(kind):
    first = start()
    optimiser = Optimiser(kind, list(zip(first, RATES, strict=True)))
    for step in range(3):
        optimiser.step(gradients(step))
    second, state = [param.clone() for param in first], optimiser.state_dict()
    optimiser.step(gradients(3))
    other = Optimiser(kind, list(zip(second, RATES, strict=True)))
    other.load_state_dict(state)
    other.step(gradients(3))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
