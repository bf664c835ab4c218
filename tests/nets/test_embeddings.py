"""Laws of embeddings: inner products against closed forms, and what "no class" means."""

import math

import pytest
import torch

from scorefield.nets.embeddings import ClassEmbedding, Conditioning, Fourier, LabelEmbedding, Sinusoidal

EMBEDDINGS = {"sinusoidal": lambda dim: Sinusoidal(dim), "fourier": lambda dim: Fourier(dim, scale=0.3)}


def test_every_embedding_is_covered():
    assert {e(2).__class__ for e in EMBEDDINGS.values()} == set(LabelEmbedding.__subclasses__())


@pytest.mark.parametrize("make", EMBEDDINGS.values(), ids=EMBEDDINGS.keys())
def test_inner_products_depend_on_the_difference_alone(make):
    embedding = make(32)
    labels, shift = torch.linspace(-2, 2, 9), 5.3
    gram = embedding(labels) @ embedding(labels).T
    shifted = embedding(labels + shift) @ embedding(labels + shift).T
    torch.testing.assert_close(shifted, gram, rtol=0, atol=1e-12 * 32)  # float64 rounding of 32 terms
    # Mean square 1, so that a linear layer sees it at the scale its initialisation expects.
    torch.testing.assert_close(gram.diagonal(), torch.full((9,), 32.0))
    assert gram[0, 1:].max() < 32


def test_sinusoidal_inner_product_is_the_sum_of_cosines():
    """e(s) . e(t) = 2 sum_i cos(w_i (s - t)), with w from the periods 1, 100^(1/4), ... of the definition."""
    difference = 0.7
    expected = 2 * sum(math.cos(difference / 100 ** (i / 4)) for i in range(4))
    left, right = Sinusoidal(8, max_period=100)(torch.tensor([1.1, 1.1 + difference]))
    assert float(left @ right) == pytest.approx(
        expected, abs=1e-6
    )  # frequencies are kept in float32 precision or better


def test_fourier_inner_product_approaches_the_gaussian_kernel():
    """Bochner: the mean of cos(w d) over w ~ N(0, s^2) is exp(-s^2 d^2 / 2)."""
    n, scale = 200_000, 0.3
    embedding = Fourier(2 * n, scale)
    for difference in (0.1, 0.5, 1.0):
        left, right = embedding(torch.tensor([0.4, 0.4 + difference]))
        kernel = math.exp(-((2 * math.pi * scale * difference) ** 2) / 2)
        # Each of n terms 2 cos / 2n has variance at most 1 / n^2 in the mean: four standard errors.
        assert float(left @ right) / (2 * n) == pytest.approx(kernel, abs=4 / math.sqrt(n))


def test_fourier_frequencies_are_frozen_and_saved():
    first, second = Fourier(16), Fourier(16)
    label = torch.randn(5)
    assert not torch.equal(first(label), second(label))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(label), second(label))
    assert not list(first.parameters())


@pytest.mark.parametrize("dim", [0, 7])
def test_odd_or_empty_embeddings_are_refused(dim):
    with pytest.raises(ValueError, match=f"dim={dim}"):
        Sinusoidal(dim)


def test_no_class_is_one_more_class():
    table = ClassEmbedding(3, 4)
    none = table(None, 2)
    assert torch.equal(none, table(torch.tensor([-1, -1]), 2))
    rows = table(torch.tensor([-1, 0, 1, 2]), 4)
    assert len(rows.unique(dim=0)) == 4


@pytest.mark.parametrize("label", [-2, 3])
def test_unknown_classes_are_refused(label):
    with pytest.raises(ValueError, match=r"class_labels must lie in 0 \.\.\. 2"):
        ClassEmbedding(3, 4)(torch.tensor([0, label]), 2)


def test_labels_for_a_network_without_classes_are_refused():
    with pytest.raises(ValueError, match="without classes"):
        Conditioning(Sinusoidal(4), 8)(torch.zeros(2), torch.tensor([0, 1]))
