"""Laws of the layers."""

import pytest
import torch
from torch.nn import functional as F

from scorefield.nets.layers import Downsample, Dropout, FiLM, ResidualBlock, SelfAttention, Upsample, group_norm


def awake_attention(channels: int, head_channels: int, fused: bool = False) -> SelfAttention:
    layer = SelfAttention(channels, head_channels, fused)
    torch.nn.init.normal_(layer.out.weight)
    return layer


def test_attention_commutes_with_permutations_of_positions():
    layer, x = awake_attention(8, 4), torch.randn(2, 8, 3, 4)
    order = torch.randperm(12)

    def permute(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[..., order].unflatten(2, (3, 4))

    torch.testing.assert_close(layer(permute(x)), permute(layer(x)), rtol=1e-10, atol=1e-12)  # order of sums


def test_attention_over_equal_positions_is_the_value_of_each():
    """Equal positions weigh each other equally whatever q and k are, so their mean value is their common value."""
    layer = awake_attention(8, 4)
    x = torch.randn(2, 8, 1, 1).expand(2, 8, 3, 3)
    value = layer.qkv(layer.norm(x))[:, 16:]
    torch.testing.assert_close(layer(x), x + layer.out(value), rtol=1e-10, atol=1e-12)


def test_attention_against_sums_written_out():
    """One head, from the definition in Vaswani et al. 2017, position by position."""
    layer, x = awake_attention(4, 4), torch.randn(1, 4, 2, 2)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2)[0].chunk(3)
    columns = []
    for i in range(4):
        weight = torch.stack([torch.exp(q[:, i].dot(k[:, j]) / 2) for j in range(4)])  # sqrt(d) = 2
        columns.append((weight * v).sum(1) / weight.sum())
    expected = x + layer.out(torch.stack(columns, 1).reshape(1, 4, 2, 2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_fused_attention_is_the_same_function():
    layer, x = awake_attention(8, 4), torch.randn(2, 8, 3, 3)
    plain = layer(x)
    layer.fused = True
    torch.testing.assert_close(layer(x), plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_can_be_differentiated_twice_unless_fused(layout):
    x = torch.randn(2, 8, 3, 3).to(memory_format=layout).requires_grad_()

    def second_derivative(fused: bool) -> torch.Tensor:
        (slope,) = torch.autograd.grad(awake_attention(8, 4, fused)(x).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    assert second_derivative(fused=False).any()
    with pytest.raises(RuntimeError, match="not implemented"):  # or the option has no use
        second_derivative(fused=True)


def test_fresh_blocks_pass_their_input_through():
    x, c = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    assert torch.equal(ResidualBlock(8, 8, 5)(x, c), x)
    assert torch.equal(SelfAttention(8, 4)(x), x)
    wider = ResidualBlock(8, 12, 5)
    assert torch.equal(wider(x, c), wider.shortcut(x))


def test_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="channels=6 must be a multiple of head_channels=4"):
        SelfAttention(6, 4)


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (6, 1)])
def test_a_fresh_upsampling_repeats_pixels(size):
    up, x = Upsample(3, 2), torch.randn(2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    y = up(x, torch.Size(size))
    each = F.conv2d(x, up.conv.weight[::4], up.conv.bias[::4])
    for i in range(size[0]):
        for j in range(size[1]):
            torch.testing.assert_close(y[..., i, j], each[..., i // 2, j // 2])


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (7, 2)])
def test_upsampling_undoes_the_size_of_downsampling(size):
    x = torch.randn(1, 2, *size)
    low = Downsample(2, 3)(x)
    assert low.shape[2:] == tuple(-(-n // 2) for n in size)
    assert Upsample(3, 2)(low, x.shape[2:]).shape == x.shape


def test_film_acts_per_channel_and_sample():
    """y is affine in x with the same two numbers all over a channel of a sample."""
    film, x, c = FiLM(3, 5), torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    shift, top = film(torch.zeros_like(x), c), film(torch.ones_like(x), c)
    assert torch.equal(shift, shift[..., :1, :1].expand_as(shift))
    torch.testing.assert_close(film(x, c), shift + (top - shift) * x)
    assert not torch.allclose(shift[0], shift[1])


def test_film_of_nothing_is_the_identity():
    film, x = FiLM(3, 5), torch.randn(2, 3, 4, 4)
    torch.nn.init.zeros_(film.linear.bias)
    assert torch.equal(film(x, torch.zeros(2, 5)), x)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 32, 48, 96, 144, 512])
def test_group_norm_divides_every_width(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    y = norm(5 * torch.randn(2, channels, 6, 6) + 3).unflatten(1, (norm.num_groups, -1)).flatten(2)
    torch.testing.assert_close(y.mean(2), torch.zeros(2, norm.num_groups), rtol=0, atol=1e-12)
    # Biased variance v / (v + eps), with v = 25 and eps = 1e-5.
    torch.testing.assert_close(y.var(2, correction=0), torch.ones(2, norm.num_groups), rtol=0, atol=1e-5)


def test_dropout_is_torchs_and_keeps_flags_only():
    """The same features for the same seed; of each, one byte is kept for the backward pass."""
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    found = []
    for layer in (Dropout(0.3), torch.nn.Dropout(0.3)):
        torch.manual_seed(0)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = layer(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        found.append((y, gradient))
        if isinstance(layer, Dropout):
            assert sum(kept.values()) == x.numel()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-15)
    assert Dropout(0.3).eval()(x) is x
    assert Dropout(0.0)(x) is x
