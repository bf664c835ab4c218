"""Divergences against closed forms, all sign probes, forward-mode derivatives and the variances of the estimators."""

import itertools
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from scorefield.divergence import Divergence, Exact, Gaussian, Hutchinson, Rademacher, Sphere, quadratic_forms
from scorefield.noise import IndexedNoise, StreamNoise

EVENTS = [(2,), (1, 8, 8), (3, 4, 4)]
DIVERGENCES = [Exact(), Exact(chunk=2), Hutchinson(k=1), Hutchinson(Gaussian(), k=3), Hutchinson(Sphere(), k=2)]
PROBES = [Rademacher(), Gaussian(), Sphere()]


def linear(matrix):
    return lambda x: (x.flatten(1) @ matrix.T).reshape(x.shape)


def swirl(x):
    """sin(x) |x|^2, whose divergence is sum cos(x_i) |x|^2 + 2 sum x_i sin(x_i)."""
    return x.sin() * x.flatten(1).square().sum(1).reshape(-1, *[1] * (x.ndim - 1))


class Perceptron(nn.Module):
    """A field whose Jacobian depends on the state and on every parameter."""

    def __init__(self, d):
        super().__init__()
        self.first, self.last = nn.Linear(d, 7), nn.Linear(7, d, bias=False)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class EnergyScore(nn.Module):
    """-grad E of a scalar network: a field that calls autograd itself."""

    def __init__(self, d):
        super().__init__()
        self.first, self.last = nn.Linear(d, 7), nn.Linear(7, 1, bias=False)

    def forward(self, x):
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.last(torch.tanh(self.first(at))).sum()
            (gradient,) = torch.autograd.grad(energy, at, create_graph=True)
        return -gradient


def jacobians(function, x):
    """Jacobian of each sample by forward-mode differentiation, (B, d, d)."""
    return torch.func.vmap(torch.func.jacfwd(lambda row: function(row[None])[0]))(x)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("chunk", [None, 1, 5, 1000])
def test_exact_divergence_of_a_linear_field_is_the_trace(event, chunk):
    matrix = torch.randn(math.prod(event), math.prod(event))
    x = torch.randn(4, *event)
    value, divergence = Exact(chunk)(linear(matrix), x, StreamNoise(0))
    torch.testing.assert_close(value, linear(matrix)(x), rtol=0, atol=0)
    # 64 summands of order 1 in float64.
    torch.testing.assert_close(divergence, matrix.trace().expand(4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("chunk", [None, 3])
def test_exact_divergence_of_a_nonlinear_field(event, chunk):
    x = torch.randn(5, *event)
    flat = x.flatten(1)
    closed = flat.cos().sum(1) * flat.square().sum(1) + 2 * (flat * flat.sin()).sum(1)
    value, divergence = Exact(chunk)(swirl, x, StreamNoise(0))
    torch.testing.assert_close(value, swirl(x), rtol=0, atol=0)
    torch.testing.assert_close(divergence, closed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_field_is_evaluated_once(divergence):
    seen = []

    def counted(x):
        seen.append(len(x))
        return swirl(x)

    divergence(counted, torch.randn(3, 2), StreamNoise(0))
    assert seen == [3]


def test_mean_over_all_sign_probes_is_the_exact_divergence():
    x = torch.randn(3, 6)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)))[:, None].expand(-1, 3, -1)
    exact = Exact()(swirl, x, StreamNoise(0))[1]
    together = quadratic_forms(swirl, x, [signs])[1]
    torch.testing.assert_close(together.mean(0), exact, rtol=1e-12, atol=1e-12)
    # The same probes in blocks, and as the probes of an estimator.
    torch.testing.assert_close(quadratic_forms(swirl, x, signs.split(10))[1], together, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(Hutchinson(k=64).along(swirl, x, signs)[1], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_hutchinson_is_unbiased_with_its_known_variance(probe):
    n, d = 40_000, 5
    matrix = torch.randn(d, d)
    symmetric = (matrix + matrix.T) / 2
    size, diagonal, trace = symmetric.square().sum(), symmetric.diag().square().sum(), matrix.trace()
    variance = {
        Rademacher(): 2 * (size - diagonal),
        Gaussian(): 2 * size,
        Sphere(): 2 * d / (d + 2) * (size - trace.square() / d),
    }[probe]
    with torch.no_grad():
        _, estimates = Hutchinson(probe)(linear(matrix), torch.zeros(n, d), StreamNoise(1))
    # CLT: five standard errors of the mean, and of the variance by the fourth moment.
    assert abs(estimates.mean() - trace) < 5 * (variance / n).sqrt()
    deviations = (estimates - trace).square()
    assert abs(deviations.mean() - variance) < 5 * deviations.std() / n**0.5
    # k probes have 1/k of the variance.
    with torch.no_grad():
        _, means = Hutchinson(probe, k=4)(linear(matrix), torch.zeros(n // 4, d), StreamNoise(2))
    deviations = (means - trace).square()
    assert abs(deviations.mean() - variance / 4) < 5 * deviations.std() / (n // 4) ** 0.5


def test_sphere_probes_have_norm_root_d():
    v = Hutchinson(Sphere(), k=3).draw(torch.zeros(7, 3, 4, 4), StreamNoise(0))
    torch.testing.assert_close(v.flatten(2).norm(dim=2), torch.full((3, 7), 48**0.5), rtol=1e-13, atol=0)


@pytest.mark.parametrize("network", [Perceptron, EnergyScore])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_gradients_with_respect_to_parameters_and_state(network, divergence):
    field, x = network(4), torch.randn(3, 4, requires_grad=True)
    probes = divergence.draw(x, StreamNoise(0))
    weights = torch.randn(3)
    value, estimate = divergence.along(field, x, probes)
    found = torch.autograd.grad((weights * estimate).sum() + value.square().sum(), [*field.parameters(), x])

    # v . J v from Jacobians that the divergence's own backward passes have no part in.
    if network is Perceptron:
        rows = jacobians(field, x)
    else:
        rows = -torch.stack([torch.autograd.functional.hessian(_energy(field), row, create_graph=True) for row in x])
    if isinstance(divergence, Exact):
        expected = rows.diagonal(dim1=1, dim2=2).sum(1)
    else:
        expected = torch.einsum("kbi,bij,kbj->b", probes, rows, probes) / len(probes)
    torch.testing.assert_close(estimate, expected, rtol=1e-12, atol=1e-12)
    total = (weights * expected).sum() + field(x).square().sum()
    # Biases that only shift the energy's argument still enter through tanh, so every parameter has a gradient.
    for ours, theirs in zip(found, torch.autograd.grad(total, [*field.parameters(), x]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def _energy(field):
    return lambda row: field.last(torch.tanh(field.first(row))).sum()


@pytest.mark.parametrize("network", [Perceptron, EnergyScore])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_change_nothing_and_keep_no_graph(network, divergence, mode):
    field, start = network(4), torch.randn(3, 4)
    value, expected = divergence(field, start, StreamNoise(0))
    assert value.requires_grad
    assert expected.requires_grad
    with mode():
        x = start * 1  # in inference mode, a tensor that autograd refuses
        quiet, found = divergence(field, x, StreamNoise(0))
    torch.testing.assert_close(quiet, value.detach(), rtol=0, atol=0)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=1e-13)
    assert quiet.grad_fn is None
    assert found.grad_fn is None
    # A state that was made in inference mode can be used outside it.
    torch.testing.assert_close(divergence(field, x, StreamNoise(0))[1], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_a_sample_does_not_depend_on_its_mates(divergence):
    field, x = Perceptron(6), torch.randn(5, 6)
    with torch.no_grad():
        _, together = divergence(field, x, IndexedNoise(0, "probes", range(5)))
        x[:4] *= 100
        _, other = divergence(field, x, IndexedNoise(0, "probes", [9, 8, 7, 6, 4]))
        _, alone = divergence(field, x[4:], IndexedNoise(0, "probes", [4]))
    # Matrix kernels may sum in another order for another batch size.
    torch.testing.assert_close(together[4:], alone, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(other[4:], alone, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_drawn_probes_can_be_held_for_a_part_of_the_batch(divergence: Divergence):
    field, x, rows = Perceptron(6), torch.randn(5, 6), torch.tensor([4, 1])
    probes = divergence.draw(x, StreamNoise(0))
    _, whole = divergence.along(field, x, probes)
    _, part = divergence.along(field, x[rows], probes[:, rows])
    torch.testing.assert_close(part, whole[rows], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_probes_drawn_in_inference_mode_can_be_trained_with(divergence):
    field, x = Perceptron(4), torch.randn(3, 4)
    with torch.inference_mode():
        quiet = divergence.draw(x, StreamNoise(0))
    weight = field.last.weight
    found, expected = (
        torch.autograd.grad(divergence.along(field, x, probes)[1].sum(), weight)[0]
        for probes in (quiet, divergence.draw(x, StreamNoise(0)))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize(("chunk", "rows"), [(1, 1), (4, 4), (None, 48)])
def test_chunk_bounds_the_memory(chunk, rows):
    x = torch.randn(10, 3, 4, 4)
    with torch.no_grad(), Largest() as seen:
        Exact(chunk)(torch.sin, x, StreamNoise(0))
    # No tensor exceeds ``rows`` rows of the Jacobian for the batch, and one of that size is needed.
    assert seen.elements == rows * x.numel()


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_last_of_a_list_of_blocks_frees_the_graph(blocks):
    """No sooner, or the next could not be pulled back; and no later, or its memory is held for nothing."""
    x, kept = torch.randn(2, 3), []

    def field(y):
        kept.append(y.sin() * y)
        return kept[-1]

    probes = torch.ones(1, 2, 3)
    with torch.no_grad():
        _, forms = quadratic_forms(field, x, [probes] * blocks)
    assert torch.allclose(forms, (x.sin() + x * x.cos()).sum(1).expand(blocks, 2))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        kept[0].sum().backward()


class Peak(TorchDispatchMode):
    """Bytes of all storages alive at once that operations have returned, at their most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.bytes = max(self.bytes, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("kind", ["perceptron", "convolutions"])
def test_exact_divergence_of_an_image_takes_the_memory_of_one_backward_pass(kind):
    """D = 3072, one row at a time: its peak stays below twice that of value and gradient of one number."""
    nets = {
        "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.SiLU(), nn.Linear(64, 3072)),
        "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1)),
    }
    net, x = nets[kind](), torch.randn(2, 3, 32, 32)
    with Peak() as one:
        at = x.clone().requires_grad_()
        torch.autograd.grad(net(at).flatten(1).sum(), at)
    with torch.no_grad(), Peak() as all_rows:
        _, found = Exact(chunk=1)(lambda y: net(y).reshape(y.shape), x, StreamNoise(0))
    assert one.bytes > x.numel() * x.element_size()
    assert all_rows.bytes < 2 * one.bytes
    if kind == "perceptron":  # the divergence is what it should be: sum_ij W2_ij silu'(h_j) W1_ji
        h = (x.flatten(1) @ net[1].weight.T + net[1].bias).requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.silu(h).sum(), h)
        torch.testing.assert_close(found, slope @ (net[3].weight.T * net[1].weight).sum(1).detach())


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_precision_is_that_of_the_state(divergence):
    x = torch.randn(3, 1, 8, 8, dtype=torch.float32)
    value, estimate = divergence(swirl, x, StreamNoise(0))
    assert (value.dtype, estimate.dtype) == (torch.float32, torch.float32)


def test_what_has_no_divergence_is_refused():
    with pytest.raises(ValueError, match="carries no gradient"):
        Exact()(torch.no_grad()(swirl), torch.randn(3, 2), StreamNoise(0))
    with pytest.raises(ValueError, match="chunk=0"):
        Exact(chunk=0)
    with pytest.raises(ValueError, match="k=0"):
        Hutchinson(k=0)
