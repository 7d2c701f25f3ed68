"""DC, DSA, DM and NCFM: gradients against slow versions and finite differences, equality is a loss of 0."""

from functools import partial

import pytest
import torch

from ptm_ray.core import nets
from ptm_ray.core.augment import OPS, Draw, apply, apply_to_all, siamese
from ptm_ray.core.characteristic import (
    Sampler,
    calibrate,
    characteristic_function,
    discrepancy,
    match_characteristics,
)
from ptm_ray.core.feature_matching import match_features
from ptm_ray.core.gradient_matching import gradient_distance, match_gradients
from tests.reference import by_class as slow

CLASSES = torch.tensor([0, 2, 1, 0, 1, 2])
FREQUENCIES = torch.randn(7, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

METHODS = {
    "gradients": match_gradients,
    "features": match_features,
    "characteristics": partial(match_characteristics, frequencies=FREQUENCIES),
}
REFERENCES = {
    "gradients": slow.gradient_matching,
    "features": slow.feature_matching,
    "characteristics": partial(
        slow.characteristic_matching, frequencies=FREQUENCIES, alpha=0.5, weight=300.0, normalise=True
    ),
}


def problem(ops=(), *, channels=2, seed=0, **options):
    """A tiny network with 16 features, two images of each of three classes, more real ones."""
    draw = torch.Generator().manual_seed(seed)
    settings = {"width": 4, "depth": 2, **options}
    network = nets.build("convnet", channels=channels, resolution=8, classes=3, **settings)
    theta = network.init(draw, torch.float64)
    images = torch.randn(6, channels, 8, 8, generator=draw, dtype=torch.float64)
    real = {
        label: torch.randn(n, channels, 8, 8, generator=draw, dtype=torch.float64)
        for label, n in ((1, 3), (0, 4), (2, 2))
    }
    return network, theta, images, CLASSES, real, siamese(ops, real, draw)


def relative_error(ours, reference):
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("ops", [(), tuple(OPS), ("crop",), ("rotate",), ("contrast",)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_agree_with_loops_over_classes_images_and_units(method, ops):
    network, theta, images, *rest = problem(ops)
    found = METHODS[method](network, theta, images, *rest)
    leaf = images.clone().requires_grad_()
    loss = REFERENCES[method](network, theta, leaf, *rest)
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-9, atol=0)
    assert relative_error(found.images, gradient) < 1e-8


@pytest.mark.parametrize("norm", ["group", "none"])
def test_gradients_of_networks_with_other_norms_are_matched_as_well(norm):
    network, theta, images, *rest = problem(norm=norm)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(slow.gradient_matching(network, theta, leaf, *rest), leaf)
    assert relative_error(match_gradients(network, theta, images, *rest).images, gradient) < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_gradients_agree_with_finite_differences(method):
    network, theta, images, *rest = problem(("scale",))
    gradient = METHODS[method](network, theta, images, *rest).images
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(5), dtype=images.dtype)
    step = 1e-6
    ahead, behind = (
        float(METHODS[method](network, theta, images + sign * step * direction, *rest).loss) for sign in (1, -1)
    )
    torch.testing.assert_close((ahead - behind) / (2 * step), float((gradient * direction).sum()), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("op", ["", *sorted(OPS)])
@pytest.mark.parametrize("method", METHODS)
def test_equal_images_are_at_no_distance_under_any_op_and_others_are(method, op):
    network, theta, images, classes, real, _ = problem()
    draws = siamese((op,) if op else (), real, torch.Generator().manual_seed(4))
    same = {label: images[classes == label] for label in real}
    found = METHODS[method](network, theta, images, classes, same, draws)
    assert abs(float(found.loss)) < 1e-10
    assert torch.isfinite(found.images).all()
    assert float(METHODS[method](network, theta, images, classes, real, draws).loss) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_class_without_real_images_is_left_alone_and_one_without_synthetic_ones_too(method):
    network, theta, images, classes, real, draws = problem()
    whole = METHODS[method](network, theta, images, classes, real, draws)
    del real[1]
    found = METHODS[method](network, theta, images, classes, {**real, 7: real[0]}, draws)
    assert torch.equal(found.images[classes == 1], torch.zeros(2, 2, 8, 8, dtype=torch.float64))
    assert torch.equal(found.images[classes != 1], whole.images[classes != 1])
    assert 0 < found.loss < whole.loss


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_leads_downhill_and_the_images_given_stay_as_they_are(method):
    network, theta, images, *rest = problem(("flip",))
    before = images.clone()
    found = METHODS[method](network, theta, images, *rest)
    assert torch.equal(images, before)
    assert not images.requires_grad
    step = 1e-3 * found.images / found.images.norm()
    assert METHODS[method](network, theta, images - step, *rest).loss < found.loss


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_is_refused(method):
    with pytest.raises(ValueError, match="running statistics"):
        METHODS[method](*problem(norm="batch"))


def test_units_without_a_gradient_bring_no_nan():
    network, theta, *_ = problem()
    gradient = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    dead = torch.zeros_like(gradient).requires_grad_()
    distance = gradient_distance(network, dead, gradient)
    units = sum(len(v) for v in network.unflatten(theta).values() if v.ndim > 1)
    assert float(distance.detach()) == units
    (slope,) = torch.autograd.grad(distance, dead)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_biases_and_norms_do_not_count_in_the_distance_of_gradients(norm):
    network, theta, *_ = problem(norm=norm)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(theta.shape, generator=generator, dtype=theta.dtype) for _ in range(2))
    before = gradient_distance(network, one, other)
    for name, value in network.unflatten(one).items():
        if name.endswith("bias") or "norm" in name:
            value.mul_(-3)
    assert torch.equal(gradient_distance(network, one, other), before)
    network.unflatten(one)["net.classifier.weight"].mul_(-1)
    assert not torch.equal(gradient_distance(network, one, other), before)


def test_a_siamese_draw_is_one_per_class_and_the_same_for_every_image():
    labels = range(40)
    draws = siamese(tuple(OPS), labels, torch.Generator().manual_seed(0))
    assert {how.op for how in draws.values()} == set(OPS)
    again = siamese(tuple(OPS), reversed(labels), torch.Generator().manual_seed(0))
    assert all(again[k].op == draws[k].op and torch.equal(again[k].strength, draws[k].strength) for k in labels)
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for how in draws.values():
        five = apply_to_all(how, image.expand(5, -1, -1, -1))
        torch.testing.assert_close(five, apply(how, image).expand(5, -1, -1, -1))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_discrepancy_is_that_of_complex_numbers(alpha):
    x, y, t = [0.3, -1.2, 2.0], [0.7, 0.1], [0.4, -1.0, 2.5]
    columns = [torch.tensor(numbers, dtype=torch.float64)[:, None] for numbers in (x, y, t)]
    phis = [characteristic_function(side, columns[2]) for side in columns[:2]]
    expected = sum(slow.discrepancy_of_numbers(x, y, one, alpha) for one in t) / len(t)
    torch.testing.assert_close(float(discrepancy(*phis, alpha)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("alpha", "weight", "normalise"), [(0.2, 1.0, True), (0.8, 10.0, False)])
def test_settings_of_characteristic_matching_mean_what_the_slow_version_says(alpha, weight, normalise):
    network, theta, images, *rest = problem()
    settings = {"alpha": alpha, "weight": weight, "normalise": normalise}
    found = match_characteristics(network, theta, images, *rest, FREQUENCIES, **settings)
    leaves = images.clone().requires_grad_(), FREQUENCIES.clone().requires_grad_()
    loss = slow.characteristic_matching(network, theta, leaves[0], *rest, leaves[1], **settings)
    of_images, of_frequencies = torch.autograd.grad(loss, leaves)
    assert relative_error(found.images, of_images) < 1e-7
    assert relative_error(found.frequencies, of_frequencies) < 1e-7


def test_calibration_is_the_cross_entropy_of_every_class():
    network, theta, images, classes, _, draws = problem(("crop",))
    found = calibrate(network, theta, images, classes, draws)
    leaf = images.clone().requires_grad_()
    losses = [
        -torch.log_softmax(network.logits(theta, slow.seen(draws[int(label)], image[None])), 1)[0, label]
        for image, label in zip(leaf, classes, strict=True)
    ]
    loss = sum(losses) / 2  # two images a class
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-10, atol=0)
    assert relative_error(found.images, torch.autograd.grad(loss, leaf)[0]) < 1e-9


def sampler(seed=0, **options):
    return Sampler(16, torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def test_the_sampler_is_three_linear_layers_each_normalised_over_its_noise():
    state = sampler().state_dict()
    state["scales"] += torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state["shifts"] += torch.randn(3, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loaded = sampler(seed=9)
    loaded.load_state_dict(state)
    noise = torch.randn(32, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = noise
    for number in range(3):
        t = t @ state["weights"][number].T
        t = (t - t.mean(0)) / (t.var(0, unbiased=False) + 1e-5).sqrt() * state["scales"][number]
        t = t + state["shifts"][number]
        t = t.tanh() if number == 2 else torch.where(t > 0, t, 0.2 * t)
    torch.testing.assert_close(loaded.frequencies(noise).detach(), t, rtol=1e-10, atol=1e-12)
    assert loaded.draw(8, torch.Generator().manual_seed(0)).abs().max() <= 1


def climb(player, steps, seed=0):
    """The discrepancy at fresh frequencies after each of these steps of ascent, on a problem that stands still."""
    case, losses = problem(), []
    for step in range(steps):
        proposed = player.draw(64, torch.Generator().manual_seed(100 * seed + step))
        found = match_characteristics(*case, proposed, weight=1.0)
        player.ascend(proposed, found.frequencies)
        losses.append(float(found.loss))
    return losses


def test_the_samplers_ascent_raises_the_discrepancy():
    losses = climb(sampler(lr=1.0), 60)
    assert sum(losses[-10:]) > 1.1 * sum(losses[:10])


def test_the_sampler_moves_along_the_gradient_of_the_discrepancy():
    case, lr, noise = problem(), 1e-4, torch.randn(32, 16, dtype=torch.float64, generator=torch.Generator())
    player = sampler(lr=lr, momentum=0.0)
    before, proposed = player.state_dict(), player.frequencies(noise)
    found = match_characteristics(*case, proposed)
    player.ascend(proposed, found.frequencies)
    after = player.state_dict()
    squared_step = sum(float((after[name] - before[name]).square().sum()) for name in ("weights", "scales", "shifts"))
    # Of a step lr · g along the gradient the loss gains lr · ‖g‖² to first order.
    gain = float(match_characteristics(*case, player.frequencies(noise)).loss - found.loss)
    torch.testing.assert_close(gain, squared_step / lr, rtol=0.05, atol=0)


def test_a_sampler_goes_on_bit_for_bit_from_its_state():
    straight = sampler(lr=0.1)
    climb(straight, 3)
    state, resumed = straight.state_dict(), sampler(seed=5, lr=0.1)
    resumed.load_state_dict(state)
    kept = {name: value.clone() for name, value in state.items() if name != "moments"}
    assert climb(straight, 3, seed=1) == climb(resumed, 3, seed=1)
    for name, value in straight.state_dict().items():
        if name == "moments":
            assert all(torch.equal(v["velocity"], resumed.state_dict()[name][k]["velocity"]) for k, v in value.items())
        else:
            assert torch.equal(value, resumed.state_dict()[name])
            assert torch.equal(state[name], kept[name])
            assert not torch.equal(state[name], value)


def test_one_draw_may_serve_all_classes():
    network, theta, images, classes, real, _ = problem()
    how = Draw("rotate", torch.tensor([[0.9, 0.1]]))
    found = match_features(network, theta, images, classes, real, dict.fromkeys(real, how))
    turned = {label: apply_to_all(how, some) for label, some in real.items()}
    none = dict.fromkeys(real, Draw("", torch.zeros(1, 2)))
    expected = match_features(network, theta, apply_to_all(how, images), classes, turned, none)
    torch.testing.assert_close(found.loss, expected.loss)
