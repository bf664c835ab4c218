"""Laws of the published networks: their sizes, and what every network of this project obeys."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from scorefield.nets import (
    ADM,
    DDPM,
    NCSN,
    Box,
    CentredBox,
    Fir,
    GaussianFourier,
    InputCat,
    InputResidual,
    InputSum,
    NCSNpp,
    NCSNv2,
    NoiseFeatures,
    OutputResidual,
    OutputSkip,
    Positional,
)
from scorefield.nets.ncsnpp import augmentation_features, class_weights
from scorefield.nets.refinenet import ConditionalInstanceNormPlus, InstanceNormPlus
from scorefield.recipe import build, recipe

unfused = {"fused_attention": False}
tiny_pp = partial(NCSNpp, 2, 8, (1, 2), 1, attention=(1,), **unfused)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ddpm": lambda: DDPM(2, 8, (1, 2), 1, Positional(8), Box(), attention=(1,), groups=4, **unfused),
    "ddpm_heads": lambda: DDPM(
        2, 8, (1, 2), 1, Positional(8), CentredBox(), (1,), True, True, True, 4, 4, 1e-5, nn.ELU(), 0.0, False
    ),
    "ddpm_pool": lambda: DDPM(2, 8, (1, 1), 1, Positional(8), Box(), resample_conv=False, groups=4, **unfused),
    "ncsnpp": lambda: tiny_pp(features=GaussianFourier(16, 0.3), resampling=Fir(), input_pyramid=InputResidual),
    "ncsnpp_skips": lambda: tiny_pp(
        features=Positional(8), resampling=Fir((1, 1)), input_pyramid=InputSum, output_pyramid=OutputSkip, classes=3
    ),
    "ncsnpp_cat": lambda: tiny_pp(
        features=Positional(8),
        resampling=Box(),
        residual_resampling=False,
        input_pyramid=InputCat,
        output_pyramid=OutputResidual,
        gain=1.0,
        activation=nn.LeakyReLU(0.2),
    ),
    "ncsnpp_untold": lambda: tiny_pp(features=None, resampling=Fir(), residual_resampling=False),
    "adm": lambda: ADM(
        2, 8, (1, 2), 1, Positional(8, endpoint=False), attention=(1,), head_channels=8, classes=3, **unfused
    ),
    "ncsn": lambda: NCSN(2, 4, 5),
    "ncsn_untold": lambda: NCSN(2, 4, None),
    "ncsnv2": lambda: NCSNv2(2, 4),
    "ncsnv2_deepest": lambda: NCSNv2(2, 4, (1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4), nn.SiLU()),
}
CONDITIONAL: dict[str, Callable[[], nn.Module]] = {
    "ddpm": lambda: DDPM(2, 8, (1, 2), 1, Positional(8), Box(), groups=4, classes=3, **unfused),
    "ncsn": lambda: NCSN(2, 4, 5, classes=3),
    "ncsnv2": lambda: NCSNv2(2, 4, classes=3),
    "ncsnpp": NETWORKS["ncsnpp_skips"],
    "adm": NETWORKS["adm"],
}
SMOOTH = [name for name in NETWORKS if name not in ("ncsnv2", "ncsnv2_deepest", "ncsnpp_cat")]


def awake(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture(params=NETWORKS)
def case(request):
    """A network away from its start, four rectangular images for it and their labels."""
    label = torch.tensor([0, 3, 1, 4]) if request.param == "ncsn" else torch.tensor([0.3, 2.0, -1.0, 0.7])
    return request.param, awake(NETWORKS[request.param]()), torch.randn(4, 2, 8, 16), label


@pytest.mark.parametrize(
    ("make", "count", "frozen"),
    [
        (
            lambda: NCSNpp(3, 128, (1, 2, 2, 2), 4, GaussianFourier(256), Fir(), (1,), input_pyramid=InputResidual),
            62_758_915,
            128,
        ),
        (lambda: NCSNpp(3, 128, (1, 2, 2, 2), 4, Positional(128), Box(), (1,)), 61_804_419, 0),
        (lambda: NCSNpp(3, 128, (2, 2, 2), 4, Positional(128), Fir((1, 1)), (1,), augmentations=9), 55_733_891, 0),
        (lambda: DDPM(3, 128, (1, 2, 2, 2), 2, Positional(128), Box(), (1,), attention_after_each=True), 35_746_307, 0),
    ],
    ids=["ncsnpp_cont_ve", "ddpmpp_cont_vp", "edm_ddpmpp", "ddpm"],
)
def test_published_sizes(make, count, frozen):
    with torch.device("meta"):
        net = make()
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == frozen


@pytest.mark.parametrize("name", [n for n in NETWORKS if not n.startswith("ncsn_") and n != "ncsn" and "v2" not in n])
def test_a_fresh_unet_returns_zero(name):
    label = torch.zeros(2)
    assert (NETWORKS[name]()(torch.randn(2, 2, 8, 8), label) == 0).all()


def test_a_sample_does_not_see_its_mates(case):
    _, net, x, label = case
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1]) for i in range(4)])
    # Blocking of matrix products depends on the batch size: float64 rounding.
    torch.testing.assert_close(net(x, label), alone, rtol=1e-9, atol=1e-11)


def test_the_output_answers_to_image_and_label(case):
    name, net, x, label = case
    out = net(x, label)
    assert out.shape == x.shape
    assert ((net(x + 0.1, label) - out).flatten(1).abs().amax(1) > 1e-9).all()
    told = name not in ("ncsnpp_untold", "ncsn_untold", "ncsnv2", "ncsnv2_deepest")
    moved = net(x, (label + 1) % 5) - out
    assert (moved.flatten(1).abs().amax(1) > 1e-9).all() == told


@pytest.mark.parametrize("name", SMOOTH)
def test_first_and_second_derivatives_in_the_input(name):
    net = awake(NETWORKS[name]())
    label = torch.tensor([0, 3]) if name == "ncsn" else torch.tensor([0.3, 2.0])
    # Average pooling and smooth nonlinearities only: the rest have corners, where differences say nothing.
    x = torch.randn(2, 2, 4, 4).requires_grad_()
    assert gradcheck(lambda x: net(x, label), (x,), fast_mode=True)
    assert gradgradcheck(lambda x: net(x, label), (x,), fast_mode=True)


def test_fused_attention_is_the_same_function(case):
    _, net, x, label = case
    expected = net(x, label)
    for module in net.modules():
        if hasattr(module, "fused"):
            module.fused = True
    torch.testing.assert_close(net(x, label), expected, rtol=1e-8, atol=1e-10)  # another order of the same sums


def test_channels_last_changes_nothing_but_the_layout(case):
    _, net, x, label = case
    expected = net(x, label)
    out = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), label)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-10)


def test_a_recipe_makes_the_network_again(case):
    """Made from plain values alone, and filled with the weights, it is the same function."""
    _, net, x, label = case
    again = build(recipe(net))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, label), net(x, label))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_network_can_be_told_a_class(name):
    """Each sample answers to its own class and to no other; no label is label -1, and unknown ones are refused."""
    net, x, label = awake(CONDITIONAL[name]()), torch.randn(4, 2, 8, 8), torch.tensor([0, 3, 1, 4])
    label = label if name == "ncsn" else label.double() / 3
    classes = torch.tensor([-1, 0, 1, 2])
    out, moved = net(x, label, classes), net(x, label, (classes + 2) % 4 - 1)
    assert ((moved - out).flatten(1).abs().amax(1) > 1e-9).all()
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1], classes[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(out, alone, rtol=1e-9, atol=1e-11)
    assert torch.equal(net(x, label), net(x, label, torch.full((4,), -1)))
    for unknown in (3, -2):
        with pytest.raises(ValueError, match="class_labels"):
            net(x, label, torch.full((4,), unknown))


@pytest.mark.parametrize("name", ["ddpm", "ncsn", "ncsnv2"])
def test_a_network_without_classes_refuses_them(name):
    with pytest.raises(ValueError, match="without classes"):
        NETWORKS[name]()(torch.randn(2, 2, 8, 8), torch.tensor([0, 3]), torch.zeros(2, dtype=torch.long))


def test_a_network_of_one_level_is_one_whose_levels_are_alike():
    one, five = awake(NCSN(2, 4, None)), NCSN(2, 4, 5)
    state = {}
    for name, value in five.state_dict().items():
        norm = name.removesuffix(".table.weight")
        parts = (f"{norm}.{part}" for part in ("gamma", "alpha", "beta"))
        state[name] = torch.cat([one.state_dict()[p] for p in parts]).expand_as(value) if norm != name else None
    five.load_state_dict({name: one.state_dict()[name] if w is None else w for name, w in state.items()})
    x, label = torch.randn(3, 2, 8, 8), torch.tensor([0, 2, 4])
    torch.testing.assert_close(one(x, label), five(x, label))
    classed = awake(NCSN(2, 4, None, classes=3))
    moved = classed(x, label, torch.tensor([0, 1, 2])) - classed(x, label)
    assert (moved.flatten(1).abs().amax(1) > 1e-9).all()
    assert [len(net.norm.table.weight) for net in (classed, five, CONDITIONAL["ncsn"]())] == [4, 5, 20]


def test_a_noise_level_that_is_none_is_refused():
    """With classes it would be another class's level."""
    with pytest.raises(ValueError, match=r"0 \.\.\. 4"):
        CONDITIONAL["ncsn"]()(torch.randn(1, 2, 8, 8), torch.tensor([5]), torch.tensor([0]))


@pytest.mark.parametrize("name", ["ddpm", "ncsnpp", "ncsnpp_skips", "adm"])
def test_a_batch_of_classes_and_augmentations(name):
    """No class is the zero vector, a class is its unit vector, and labels for networks without are refused."""
    net, x, label = awake(NETWORKS[name]()), torch.randn(3, 2, 8, 8), torch.rand(3)
    if name in ("ddpm", "ncsnpp"):
        with pytest.raises((ValueError, TypeError), match=r"without classes|class_labels"):
            net(x, label, class_labels=torch.zeros(3, dtype=torch.long))
        return
    labels = torch.tensor([-1, 0, 2])
    vectors = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.equal(net(x, label, labels), net(x, label, vectors))
    assert torch.equal(net(x, label), net(x, label, torch.tensor([-1, -1, -1])))
    with pytest.raises(ValueError, match="augmentations=0"):
        net(x, label, augment_labels=torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"augment_labels has shape \(3, 4\), expected \(3, 9\)"):
        augmentation_features(torch.nn.Linear(9, 2), torch.zeros(3, 4), x[:, 0, 0])
    with pytest.raises(ValueError, match="class_labels"):
        class_weights(torch.tensor([0, 3]), 2, 3, x)


def test_images_that_cannot_be_halved_are_refused():
    net = NETWORKS["ncsnpp"]()
    with pytest.raises(ValueError, match="multiples of 2"):
        net(torch.randn(1, 2, 7, 8), torch.zeros(1))


FEATURES = {
    "positional": lambda: Positional(8),
    "open": lambda: Positional(8, endpoint=False),
    "fourier": lambda: GaussianFourier(8),
}


def test_every_kind_of_feature_is_covered():
    assert {type(make()) for make in FEATURES.values()} == set(NoiseFeatures.__subclasses__())


@pytest.mark.parametrize("make", FEATURES.values(), ids=FEATURES.keys())
def test_inner_products_of_features_depend_on_the_difference_alone(make):
    features = make()
    labels, shift = torch.linspace(-2, 2, 9), 5.3
    gram = features(labels) @ features(labels).T
    shifted = features(labels + shift) @ features(labels + shift).T
    torch.testing.assert_close(shifted, gram, rtol=0, atol=1e-10)  # phases of some hundred, in float64
    torch.testing.assert_close(gram.diagonal(), torch.full((9,), 4.0))


def test_the_slowest_period_is_the_one_asked_for():
    """The last pair of frequencies, read off the derivative of its sine at 0."""
    for endpoint, exponent in ((True, 1.0), (False, 3 / 4)):
        features = Positional(8, 100.0, endpoint)
        _, slope = torch.func.jvp(features, (torch.zeros(1),), (torch.ones(1),))
        assert float(slope[0, 3]) == pytest.approx(100.0**-exponent, rel=1e-6)


def test_instance_norm_plus_is_equation_9():
    """Statistics by NumPy's definitions: mean and biased variance of each channel, unbiased variance of the means."""
    norm, x = awake(InstanceNormPlus(5)), torch.randn(2, 5, 6, 7)
    mu, s = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
    m, v = mu.mean(1, keepdim=True), mu.var(1, unbiased=True, keepdim=True)
    gamma, alpha, beta = (p[:, None, None] for p in (norm.gamma, norm.alpha, norm.beta))
    expected = gamma * ((x - mu) / (s + 1e-5).sqrt() + alpha * (mu - m) / (v + 1e-5).sqrt()) + beta
    torch.testing.assert_close(norm(x, None), expected)
    table = ConditionalInstanceNormPlus(5, 3)
    with torch.no_grad():
        table.table.weight[1] = torch.cat((norm.gamma, norm.alpha, norm.beta))
    torch.testing.assert_close(table(x, torch.tensor([1, 1])), expected)


def test_the_first_block_of_a_level_halves_unless_it_is_dilated():
    sizes = []
    net = NCSNv2(2, 4, (1, 2, 2, 4, 4), (1, 1, 1, 2, 4))
    for blocks in net.levels:
        blocks[1].register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[1:])))
    net(torch.randn(1, 2, 16, 8))
    assert sizes == [(4, 16, 8), (8, 8, 4), (8, 4, 2), (16, 4, 2), (16, 4, 2)]
