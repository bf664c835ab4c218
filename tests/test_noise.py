"""Sources of randomness: which draws are equal, which differ, and how all are distributed."""

import numpy as np
import pytest
import torch
from scipy import stats

from scorefield.noise import GlobalNoise, IndexedNoise, StreamNoise, key_of

KINDS = ["normal_like", "uniform_like", "signs_like"]
MANY = torch.empty(200, 100)


def sources(n: int) -> dict:
    return {"global": GlobalNoise(), "stream": StreamNoise(0, "a"), "indexed": IndexedNoise(0, "a", range(n))}


@pytest.mark.parametrize("source", ["global", "stream", "indexed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_their_law(source, dtype):
    """Kolmogorov-Smirnov on 20 000 draws; the seeds are fixed, so the threshold of 1e-3 is met or not for good."""
    noise, like = sources(len(MANY))[source], MANY.to(dtype)
    assert stats.kstest(noise.normal_like(like).double().flatten(), "norm").pvalue > 1e-3
    assert stats.kstest(noise.uniform_like(like).double().flatten(), "uniform").pvalue > 1e-3
    signs = noise.signs_like(like)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.double().mean())) < 4 / np.sqrt(signs.numel())  # four deviations


@pytest.mark.parametrize("source", ["global", "stream", "indexed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_draws_are_typed_and_placed_like_the_given_tensor(source, kind, dtype):
    x = torch.zeros(3, 1, 2, dtype=dtype)
    drawn = getattr(sources(3)[source], kind)(x)
    assert (drawn.shape, drawn.dtype, drawn.device) == (x.shape, x.dtype, x.device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_indexed_noise_is_the_same_on_every_device(kind):
    x = torch.zeros(4, 3, dtype=torch.float32)
    on_device = getattr(IndexedNoise(0, "a", range(4)), kind)(x.cuda())
    assert on_device.is_cuda
    assert torch.equal(on_device.cpu(), getattr(IndexedNoise(0, "a", range(4)), kind)(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_uniform_stays_below_one_in_narrow_types(dtype):
    """Rounding would lift one draw in 2^12 to 1 in float16; the streams' own largest draws are forced here."""

    class Largest:
        def random(self, out):
            out[...] = np.nextafter(1.0, 0.0)

    noise = IndexedNoise(0, "a", range(3))
    noise._streams = [Largest()] * 3
    assert bool((noise.uniform_like(torch.empty(3, 5, dtype=dtype)) < 1).all())


KEYS = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), ("0", "a"), (0, "a0"), (10, "a"), (1, "0a")]


def test_keys_that_read_alike_are_told_apart():
    assert len({key_of(*key) for key in KEYS}) == len(KEYS)
    assert key_of(3, "order", 5) == key_of(3, "order", 5)


@pytest.mark.parametrize("kind", ["normal_like", "uniform_like"])
def test_streams_of_different_keys_share_no_draw(kind):
    draws = [getattr(StreamNoise(*key), kind)(torch.empty(50, dtype=torch.float64)) for key in KEYS]
    assert len(torch.cat(draws).unique()) == 50 * len(KEYS)
    again = getattr(StreamNoise(*KEYS[3]), kind)(torch.empty(50, dtype=torch.float64))
    assert torch.equal(again, draws[3])


def test_streams_of_different_keys_are_uncorrelated():
    """Neighbouring steps: the correlation of 20 000 pairs is within four deviations of zero."""
    draws = torch.stack([StreamNoise(0, "objective", 0, step).normal_like(MANY).flatten() for step in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert float(correlation.abs().max()) < 4 / np.sqrt(MANY.numel())


def test_a_stream_goes_on():
    """Two draws in a row differ, and make up what one stream gives again from its start."""
    one, two = StreamNoise(7), StreamNoise(7)
    first, second = (one.normal_like(torch.empty(16, dtype=torch.float64)) for _ in range(2))
    assert not torch.isclose(first, second).any()
    assert torch.equal(
        torch.cat([two.normal_like(torch.empty(16, dtype=torch.float64)) for _ in range(2)])[16:], second
    )


def test_only_the_global_source_reads_the_global_generator():
    def draws():
        torch.manual_seed(5)
        return {name: source.normal_like(torch.empty(3, 4)) for name, source in sources(3).items()}

    first = draws()
    torch.manual_seed(6)
    state = torch.get_rng_state()
    for name in ("stream", "indexed"):
        assert torch.equal(sources(3)[name].normal_like(torch.empty(3, 4)), first[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.isclose(GlobalNoise().normal_like(torch.empty(3, 4)), first["global"]).any()


def test_permutation_is_one():
    order = StreamNoise(0, "order", 1).permutation(50)
    assert torch.equal(order.sort().values, torch.arange(50))
    assert not torch.equal(order, StreamNoise(0, "order", 2).permutation(50))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_on_their_index_alone(kind):
    """Two draws in a row, so that a stream that were shared by the batch would be at different places."""

    def two_draws(indices):
        noise, x = IndexedNoise(4, "samples", indices), torch.empty(len(indices), 6)
        return torch.stack([getattr(noise, kind)(x), getattr(noise, kind)(x)], 1)

    together = two_draws(range(8))
    assert torch.equal(two_draws([6, 0, 3]), together[[6, 0, 3]])
    assert torch.equal(two_draws(torch.tensor([5])), together[[5]])
    assert len(two_draws([])) == 0


def test_indexed_streams_differ_by_seed_purpose_and_index():
    x = torch.empty(4, 50, dtype=torch.float64)
    families = [IndexedNoise(seed, purpose, range(4)).normal_like(x) for seed in (0, 1) for purpose in ("a", "b")]
    assert len(torch.stack(families).unique()) == 4 * x.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_narrower_draws_are_the_wide_ones_rounded(kind):
    wide = getattr(IndexedNoise(0, "a", range(3)), kind)(torch.empty(3, 9, dtype=torch.float64))
    narrow = getattr(IndexedNoise(0, "a", range(3)), kind)(torch.empty(3, 9, dtype=torch.float32))
    assert torch.equal(narrow, wide.float())


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="x has 3 rows, but this IndexedNoise was made for 2"):
        IndexedNoise(0, "a", [1, 2]).normal_like(torch.empty(3, 4))
