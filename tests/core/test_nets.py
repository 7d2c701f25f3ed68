"""A network as a function of one vector computes what the ordinary module with those parameters computes."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ptm_ray.core import augment, nets
from ptm_ray.core.nets.convnet import default_depth, max_depth
from ptm_ray.core.nets.registry import ARCHITECTURES, SMALLEST
from ptm_ray.errors import ConfigError

NORMS = ("instance", "group", "batch", "none")
SMALL = {"width": 8, "depth": 2}
CASES = [
    *(("convnet", {**SMALL, "norm": norm, "pooling": pooling}) for norm in NORMS for pooling in ("avg", "max")),
    *((name, {}) for name in sorted(ARCHITECTURES) if name != "convnet"),
]
PRECISIONS = ("float32", "bfloat16")
WITH_STATE = [("convnet", {**SMALL, "norm": "batch"}), ("resnet18_bn", {})]


def ident(case):
    return "-".join([case[0], *map(str, case[1].values())])


def pair(name, options, resolution=16):
    """The network, its parameters, an ordinary module that holds the same ones, and images."""
    draw = torch.Generator().manual_seed(0)
    network = nets.build(name, channels=3, resolution=resolution, classes=5, **options)
    module = ARCHITECTURES[name](3, resolution, 5, **options).double()
    theta = network.init(draw, torch.float64)
    theta += 0.02 * torch.randn(theta.shape, generator=draw, dtype=theta.dtype)
    vector_to_parameters(theta, module.parameters())
    return network, theta, module, torch.randn(6, 3, resolution, resolution, generator=draw, dtype=torch.float64)


def double(state):
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


def forward(module, images):
    return module.head(module.features(images))


@pytest.mark.parametrize("case", CASES, ids=ident)
def test_logits_of_the_vector_are_those_of_the_module(case):
    network, theta, module, images = pair(*case)
    expected = forward(module.train(), images)
    torch.testing.assert_close(network.logits(theta, images, double(network.fresh_state())), expected)
    if not network.has_batch_statistics:
        torch.testing.assert_close(network.embed(theta, images), module.features(images))


@pytest.mark.parametrize("case", CASES, ids=ident)
def test_num_params_counts_every_parameter_and_the_same_seed_draws_the_same_ones(case):
    network, theta, module, _ = pair(*case)
    assert network.num_params == len(theta) == len(parameters_to_vector(module.parameters()))
    first, again, other = (network.init(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("case", CASES, ids=ident)
def test_fresh_parameters_are_spread_as_torch_spreads_them(case):
    name, options = case
    network = nets.build(name, channels=3, resolution=16, classes=5, **options)
    drawn = network.unflatten(network.init(torch.Generator().manual_seed(0)))
    torch.manual_seed(0)  # the framework's own start draws from the global generator
    for key, theirs in ARCHITECTURES[name](3, 16, 5, **options).named_parameters():
        ours, theirs = drawn[f"net.{key}"], theirs.detach()
        if "norm" in key:
            assert torch.equal(ours, theirs)
        elif "position" not in key and ours.numel() > 500:
            torch.testing.assert_close(float(ours.std()), float(theirs.std()), rtol=0.1, atol=0)
            torch.testing.assert_close(float(ours.abs().max()), float(theirs.abs().max()), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("resolution", ["smallest", 28, 32])
def test_no_network_is_blind(name, resolution):
    side = SMALLEST[name] if resolution == "smallest" else resolution
    network = nets.build(name, channels=1, resolution=side, classes=3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, side, side, generator=draw)
    logits = network.logits(network.init(draw), images, network.fresh_state())
    assert logits.std(0).max() > 1e-3


@pytest.mark.parametrize("case", WITH_STATE, ids=ident)
def test_running_statistics_move_in_training_and_only_then(case):
    network, theta, module, images = pair(*case)
    state = double(network.fresh_state())
    for batch in images.split(3):
        network.logits(theta, batch, state)
        forward(module.train(), batch)
    for key, value in module.named_buffers():
        torch.testing.assert_close(state[f"net.{key}"], value)
    before = {key: value.clone() for key, value in state.items()}
    scores = network.logits(theta, images, state, train=False)
    torch.testing.assert_close(scores, forward(module.eval(), images))
    torch.testing.assert_close(scores[:1], network.logits(theta, images[:1], state, train=False))
    assert all(torch.equal(state[key], value) for key, value in before.items())


@pytest.mark.parametrize("case", WITH_STATE, ids=ident)
def test_batch_norm_without_its_statistics_is_refused(case):
    network, theta, _, images = pair(*case)
    assert network.has_batch_statistics
    with pytest.raises(ValueError, match=f"{network.name} needs the running statistics"):
        network.logits(theta, images)


def test_named_parameters_are_views_of_the_vector():
    network, theta, _, _ = pair("convnet", SMALL)
    network.unflatten(theta)["net.classifier.bias"].fill_(7.0)
    assert torch.equal(theta[-5:], torch.full((5,), 7.0, dtype=theta.dtype))


@pytest.mark.parametrize("width", [1, 8, 24, 40, 50])
def test_group_norm_fits_every_width(width):
    network = nets.build("convnet", channels=1, resolution=8, classes=2, width=width, depth=1, norm="group")
    draw = torch.Generator().manual_seed(0)
    assert network.logits(network.init(draw), torch.randn(2, 1, 8, 8, generator=draw)).isfinite().all()


@pytest.mark.parametrize(
    ("resolution", "depth", "left"), [(8, 3, 1), (28, 3, 3), (32, 3, 4), (64, 4, 4), (128, 5, 4), (224, 6, 3)]
)
def test_depth_follows_the_resolution_so_that_few_pixels_reach_the_head(resolution, depth, left):
    assert default_depth(resolution) == depth
    network = nets.build("convnet", channels=1, resolution=resolution, classes=2, width=4)
    images = torch.zeros(1, 1, resolution, resolution)
    assert network.embed(network.init(torch.Generator()), images).shape == (1, 4 * left * left)


def test_the_deepest_network_that_fits_is_built_and_the_next_refused():
    for resolution in (8, 28, 32):
        deepest = max_depth(resolution)
        nets.build("convnet", channels=1, resolution=resolution, classes=2, width=4, depth=deepest)
        with pytest.raises(ConfigError, match=f"of {resolution} pixels .* depth {deepest + 1}; use depth {deepest}"):
            nets.build("convnet", channels=1, resolution=resolution, classes=2, width=4, depth=deepest + 1)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_images_below_the_smallest_are_refused(name):
    smallest = SMALLEST[name]
    with pytest.raises(ConfigError, match=f"of {smallest - 1} pixels are too small for {name}, which needs {smallest}"):
        nets.build(name, channels=1, resolution=smallest - 1, classes=2)


def test_an_unknown_network_is_answered_by_the_near_name():
    with pytest.raises(ConfigError, match="unknown network 'convnets'; did you mean 'convnet'"):
        nets.build("convnets", channels=1, resolution=32, classes=2)


def test_bfloat16_is_of_convolutions_alone_and_near_the_exact_numbers():
    exact, rounded = (
        nets.build("convnet", channels=3, resolution=16, classes=5, **SMALL, precision=p) for p in PRECISIONS
    )
    draw = torch.Generator().manual_seed(0)
    theta = exact.init(draw).requires_grad_()
    images = torch.randn(6, 3, 16, 16, generator=draw)
    found = []
    for network in (exact, rounded):
        logits = network.logits(theta, images)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(6) % 5), theta)
        assert logits.dtype == gradient.dtype == torch.float32
        found.append((logits.detach(), gradient))
    (logits, gradient), (near_logits, near_gradient) = found
    assert 1e-5 < (near_logits - logits).norm() / logits.norm() < 0.05
    assert F.cosine_similarity(gradient, near_gradient, dim=0) > 0.98


def plain_convnet(named, images):
    """Instance norm, ReLU and average pooling by the framework, differentiated by it."""
    x = images
    for block in range(2):
        x = F.conv2d(x, named[f"net.convs.{block}.weight"], padding=1)
        norm = (named[f"net.norms.{block}.{part}"] for part in ("weight", "bias"))
        x = F.avg_pool2d(F.relu(F.instance_norm(x, None, None, *norm)), 2)
    return F.linear(x.flatten(1), named["net.classifier.weight"], named["net.classifier.bias"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", sorted(augment.OPS))
def test_both_derivatives_are_the_framework_s_however_images_were_augmented(op, channels):
    """A network of ours stands on both sides of most other comparisons: what it gets wrong, they can't see."""
    draw = torch.Generator().manual_seed(0)
    network = nets.build("convnet", channels=channels, resolution=16, classes=3, **SMALL)
    theta = network.init(draw, torch.float64).requires_grad_()
    images = torch.randn(4, channels, 16, 16, generator=draw, dtype=torch.float64).requires_grad_()
    along = torch.randn(theta.shape, generator=draw, dtype=torch.float64)
    drawn = augment.draw((op,), 4, draw)

    def derivatives(logits_of):
        loss = F.cross_entropy(logits_of(augment.apply(drawn, images)), torch.tensor([0, 1, 2, 0]))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        return gradient.detach(), *torch.autograd.grad(gradient @ along, (theta, images))

    ours = derivatives(lambda seen: network.logits(theta, seen))
    plain = derivatives(lambda seen: plain_convnet(network.unflatten(theta), seen))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
