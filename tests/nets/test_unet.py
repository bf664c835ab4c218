"""Laws of the U-Net's shape."""

import pytest
import torch

from scorefield.nets import UNet
from scorefield.nets.embeddings import Sinusoidal


def build(shape=(1, 8, 8), channels=4, multipliers=(1, 2), blocks=1, **options):
    return UNet(shape, channels, multipliers, blocks, Sinusoidal(4), head_channels=4, **options)


def awake(net):
    """The network away from its zero start, where fresh blocks pass their input through."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8)}, "channels, height, width"),
        ({"shape": (1, 0, 8)}, "all positive"),
        ({"multipliers": ()}, "one per level"),
        ({"channels": 0}, "channels=0"),
        ({"blocks": (1, 1, 1)}, "each of 2 levels"),
        ({"blocks": 0}, r"blocks=\[0, 0\]"),
        ({"attention": (2,)}, "levels from 0 to 1"),
        ({"attention": (-1,)}, "levels from 0 to 1"),
        ({"shape": (1, 8, 2), "multipliers": (1, 1, 1)}, "8x2 cannot be halved 2 times"),
        ({"shape": (1, 1, 6)}, "1x6 cannot be halved 1 times"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (3, 8), (9, 4), (13, 11)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_size_that_can_be_halved_works(size, levels):
    possible = min(size) > (1 if levels == 2 else 2 if levels == 3 else 0)
    if not possible:
        with pytest.raises(ValueError, match="cannot be halved"):
            build((1, *size), multipliers=(1,) * levels)
        return
    x = torch.randn(2, 1, *size)
    assert build((1, *size), multipliers=(1,) * levels)(x, torch.zeros(2)).shape == x.shape


def test_the_lowest_level_sees_the_whole_image():
    """Three levels of 3x3 convolutions reach from corner to corner of 16x16, which one level does not."""

    def reach(multipliers: tuple[int, ...]) -> bool:
        net = awake(build((1, 16, 16), multipliers=multipliers, blocks=1))
        for module in net.modules():  # normalisation sees the whole image by itself
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x
        x = torch.randn(1, 1, 16, 16, requires_grad=True)
        net(x, torch.zeros(1))[0, 0, 0, 0].backward()
        return bool(x.grad[0, 0, -1, -1] != 0)

    assert reach((1, 1, 1))
    assert not reach((1,))


def test_parameters_grow_as_documented():
    """Doubling the channels of every layer multiplies a network by nearly four; blocks and levels only add."""

    def count(net: torch.nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert 3.5 < count(build(channels=64)) / count(build(channels=32)) < 4
    one, two, three = (count(build(blocks=(n, 1))) for n in (1, 2, 3))
    assert three - two == two - one > 0


def test_dropout_acts_in_training_alone():
    net, x = awake(build(dropout=0.5)), torch.randn(2, 1, 8, 8)
    label = torch.zeros(2)
    assert not torch.equal(net(x, label), net(x, label))
    net.eval()
    assert torch.equal(net(x, label), net(x, label))


def test_each_decoder_stage_sees_its_counterpart():
    """Last in, first out: the stage after the upsampling gets what the stage before the downsampling found."""
    net = awake(build(blocks=(3, 1)))
    level = net.body
    found, seen = [], []
    for stage in level.encoder:
        stage.register_forward_hook(lambda _module, _args, out: found.append(out))
    for stage in level.decoder:
        stage.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    net(torch.randn(2, 1, 8, 8), torch.zeros(2))
    for skip, x in zip(reversed(found), seen, strict=True):
        assert torch.equal(x[:, 4:], skip)
