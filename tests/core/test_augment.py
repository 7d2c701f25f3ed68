"""Each op does to each image what its strength says, against loops over pixels; the same draw does the same again."""

import math

import numpy as np
import pytest
import torch

from ptm_ray.core.augment import OPS, Draw, apply, check_ops, draw
from ptm_ray.errors import ConfigError
from tests.reference.augment import BY_LOOP


def images(n=8, channels=3, side=16):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drawn(op, n=8, seed=0):
    return draw((op,), n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("op", sorted(BY_LOOP))
@pytest.mark.parametrize("channels", [1, 3])
def test_an_op_agrees_with_a_loop_over_pixels(op, channels):
    some, how = images(channels=channels), drawn(op)
    expected = [
        BY_LOOP[op](image, strength) for image, strength in zip(some.numpy(), how.strength.numpy(), strict=True)
    ]
    np.testing.assert_allclose(apply(how, some).numpy(), np.stack(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_op_keeps_the_shape_and_depends_on_its_draw_alone(op):
    some = images()
    out = apply(drawn(op), some)
    assert out.shape == some.shape
    assert out.dtype == some.dtype
    assert torch.equal(out, apply(drawn(op), some))
    assert not torch.equal(out, apply(drawn(op, seed=1), some))
    assert not torch.equal(out, some)


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_image_is_treated_alike_alone_and_in_a_batch(op):
    some, how = images(), drawn(op)
    alone = [apply(Draw(op, how.strength[k : k + 1]), some[k : k + 1]) for k in range(len(some))]
    torch.testing.assert_close(apply(how, some), torch.cat(alone))


def test_no_op_leaves_the_images_alone():
    some = images()
    assert torch.equal(apply(draw((), 8, torch.Generator()), some), some)


@pytest.mark.parametrize("op", ["flip", "flip_vertical"])
def test_a_flip_mirrors_some_images_and_twice_none(op):
    some, how = images(40), drawn(op, 40)
    mirrored = (apply(how, some) != some).flatten(1).any(1)
    assert 10 < int(mirrored.sum()) < 30
    assert torch.equal(apply(how, apply(how, some)), some)


def test_cutout_zeroes_at_most_a_quarter_and_touches_nothing_else():
    some = images(60)
    out = apply(drawn("cutout", 60), some)
    holes = (out == 0).all(1)
    assert torch.equal(out[~holes[:, None].expand_as(out)], some[~holes[:, None].expand_as(some)])
    shares = holes.flatten(1).double().mean(1)
    assert shares.max() == 0.25
    assert shares.min() > 0


def test_crop_shifts_reach_an_eighth_of_the_side_in_every_direction():
    marked = torch.zeros(300, 1, 16, 16)
    marked[:, 0, 8, 8] = 1
    places = apply(drawn("crop", 300), marked).flatten(1).argmax(1)
    rows, columns = places // 16 - 8, places % 16 - 8
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def centre(images):
    """Where the light is, as offsets from the middle: (n,) down and right."""
    side = images.shape[-1]
    place = torch.arange(side) - (side - 1) / 2
    light = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    return (light.sum(2) * place).sum(1), (light.sum(1) * place).sum(1)


def spot(n, down, right, side=32):
    y, x = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * 2, indexing="ij")
    return torch.exp(-((y - down) ** 2 + (x - right) ** 2) / 4).expand(n, 1, side, side).contiguous()


def test_rotation_turns_a_spot_around_the_middle_by_at_most_15_degrees():
    how = drawn("rotate", 50)
    down, right = centre(apply(how, spot(50, 0.0, 9.0)))
    torch.testing.assert_close(torch.hypot(down, right), torch.full((50,), 9.0), atol=0.05, rtol=0)
    angle = torch.atan2(down, right)
    expected = (how.strength[:, 0] - 0.5) * 2 * math.radians(15)
    torch.testing.assert_close(angle.abs(), expected.abs(), atol=0.01, rtol=0)
    assert len(set(torch.sign(angle * expected).tolist())) == 1


def test_scale_moves_a_spot_by_the_inverse_of_its_factor_on_each_axis():
    how = drawn("scale", 50)
    down, right = centre(apply(how, spot(50, 6.0, 6.0)))
    factor = how.strength * (1.2 - 1 / 1.2) + 1 / 1.2
    torch.testing.assert_close(right, 6 / factor[:, 0], atol=0.05, rtol=0)
    torch.testing.assert_close(down, 6 / factor[:, 1], atol=0.05, rtol=0)


def test_every_op_is_drawn_and_as_often_as_the_others():
    generator = torch.Generator().manual_seed(0)
    found = [draw(tuple(OPS), 1, generator).op for _ in range(900)]
    assert set(found) == set(OPS)
    assert all(60 < found.count(op) < 140 for op in OPS)


def test_an_unknown_op_is_answered_by_the_near_name():
    with pytest.raises(ConfigError, match="unknown augmentation 'flop'; did you mean 'flip'"):
        check_ops(("crop", "flop"))
    check_ops(tuple(OPS))
