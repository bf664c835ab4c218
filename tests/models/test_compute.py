"""Settings of a network's calls: the same numbers up to rounding, the same names, and what each of them is for."""

import copy
import platform
import subprocess
import sys

import pytest
import torch

from scorefield.divergence import Hutchinson, quadratic_forms
from scorefield.models import Compute, NetworkModel, Parametrization
from scorefield.nets import MLP, UNet
from scorefield.nets.embeddings import Fourier
from scorefield.nets.group_norm import ActivatedGroupNorm
from scorefield.nets.native import NoCompilerError
from scorefield.nets.pointwise import PointwiseConv2d
from scorefield.nets.winograd import WinogradConv2d
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.probability_flow import ProbabilityFlow
from scorefield.schedules import EDM
from scorefield.times import LogNormal
from tests.nets.test_published_networks import NETWORKS

SHAPE = (1, 8, 8)


def model(compute=None):
    torch.manual_seed(0)
    net = UNet(
        SHAPE,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(1,),
        embedding=Fourier(8),
        dropout=0.1,
        head_channels=8,
    )
    with torch.no_grad():  # outputs that start at zero would hide what their inputs are
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return NetworkModel(net, EDM(0.002, 80.0), Parametrization.edm(0.5), compute=compute)


def step(model, x):
    """The loss of a step and the gradient of all parameters."""
    model.zero_grad()
    torch.manual_seed(1)
    loss = Denoising(times=LogNormal())(model, x, None, StreamNoise(0)).per_sample.mean()
    loss.backward()
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture
def x():
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2)).float()


@pytest.fixture(autouse=True)
def single():
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


def test_a_step_that_computes_again_is_the_same_up_to_rounding(x):
    """Dropout included: the same features are dropped."""
    plain, other = model(), model(Compute(recompute=True))
    assert list(plain.state_dict()) == list(other.state_dict())
    (one, gradient), (two, its) = step(plain, x), step(other, x)
    assert two == pytest.approx(one, rel=1e-5)
    assert torch.allclose(its, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    averaged = copy.deepcopy(other)
    averaged.load_state_dict(plain.state_dict())
    t = torch.tensor([0.1, 1.0, 10.0, 80.0])
    assert torch.allclose(averaged.eval()(x, t).data, plain.eval()(x, t).data, atol=1e-5)


def saved(function):
    """Bytes that autograd keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


def test_what_is_computed_again_is_not_kept(x):
    one, less = (
        saved(lambda m=m: Denoising(times=LogNormal())(m, x, None, StreamNoise(0)).per_sample.mean())
        for m in (model(), model(Compute(recompute=True)))
    )
    assert less < 0.6 * one


def test_what_is_computed_again_can_be_differentiated_twice(x):
    """A likelihood inside an objective asks for it."""
    gradients = []
    for compute in (Compute(), Compute(recompute=True)):
        m = model(compute).eval()
        at = x.clone().requires_grad_()
        score = m(at, torch.ones(4)).score
        (inner,) = torch.autograd.grad(score.square().sum(), at, create_graph=True)
        inner.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def test_only_the_network_runs_in_bfloat16(x):
    m = model(Compute(bf16=True)).eval()
    seen = []
    m.net.register_forward_pre_hook(lambda net, args: seen.append([a.dtype for a in args]))
    first = next(module for module in m.net.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda net, args, out: seen.append(out.dtype))
    t = torch.tensor([0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    prediction = m(x, t)
    assert seen == [[torch.float32, torch.float32], torch.bfloat16]
    assert (prediction.out.dtype, prediction.data.dtype) == (torch.float32, torch.float32)
    exact = model().eval()(x, t).out
    # bfloat16 keeps eight bits; errors of a dozen layers add up.
    error = float((prediction.out - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 1e-4 < error < 0.05
    loss, gradient = step(model(Compute(bf16=True)), x)
    assert gradient.dtype == torch.float32
    assert loss == pytest.approx(step(model(), x)[0], rel=0.05)


def test_a_likelihood_is_the_same(x):
    flow = ProbabilityFlow(divergence=Hutchinson(k=2))
    plain = flow.log_prob(model().eval(), x[:1], noise=StreamNoise(3))
    again = flow.log_prob(model(Compute(recompute=True)).eval(), x[:1], noise=StreamNoise(3))
    assert torch.allclose(again, plain, rtol=1e-3)


@pytest.mark.slow  # compiling takes half a minute
def test_compiled_is_the_same_and_so_is_a_copy(x):
    plain, other = model().eval(), model(Compute(compiled=True)).eval()
    t = torch.tensor([0.1, 1.0, 10.0, 80.0])
    assert list(plain.state_dict()) == list(other.state_dict())
    assert torch.allclose(other(x, t).data, plain(x, t).data, atol=1e-4)
    assert other.net._compiled_call_impl is not None
    twin = copy.deepcopy(other)
    assert torch.allclose(twin(x, t).data, plain(x, t).data, atol=1e-4)
    assert twin.net._compiled_call_impl is not None


def test_a_setting_that_means_nothing_is_refused():
    net = MLP(shape=(2,), width=8, depth=1, embedding=Fourier(8))
    with pytest.raises(ValueError, match=r"compute\.recompute=true, but MLP has no"):
        NetworkModel(net, EDM(0.002, 80.0), Parametrization.edm(0.5), compute=Compute(recompute=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_published_network_can_compute_its_blocks_again(name):
    """The same gradient bit for bit: the same operations on the same numbers."""
    torch.manual_seed(0)
    net = NETWORKS[name]().float()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    side = 16 if name == "ncsnv2_deepest" else 8
    x, label = torch.randn(2, 2, side, side), torch.tensor([1, 2] if name == "ncsn" else [0.3, 0.9])
    gradients = []
    for compute in (Compute(), Compute(recompute=True)):
        compute.prepare(net)
        net.zero_grad()
        torch.manual_seed(1)
        net(x, label).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().max()) > 0


def spoiled(name):
    """A published network whose every weight is a random number: none of its branches is silent."""
    torch.manual_seed(0)
    net = NETWORKS[name]().float().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    side = 16 if name == "ncsnv2_deepest" else 8
    return net, torch.randn(2, 2, side, side), torch.tensor([1, 2] if name == "ncsn" else [0.3, 0.9])


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_published_network_keeps_its_numbers_in_another_layout(name, native, monkeypatch):
    """Values, gradients and forms of several probes at once; also in a copy, as the averaged network is."""
    monkeypatch.setattr("scorefield.nets.winograd.pays", lambda x, _: not (x.shape[2] % 4 or x.shape[3] % 4))
    net, x, label = spoiled(name)
    twin = copy.deepcopy(net)
    compute = Compute(channels_last=True, winograd=native, fused_norms=native)
    compute.prepare(twin)
    twin = copy.deepcopy(twin)
    assert list(twin.state_dict()) == list(net.state_dict())
    assert any(isinstance(module, WinogradConv2d) for module in twin.modules()) == native
    for kind in (PointwiseConv2d, ActivatedGroupNorm):
        assert all(isinstance(m, kind) == native for m in twin.modules() if kind.fits(m))
    probes = Hutchinson(k=3).draw(x, StreamNoise(0))
    found, expected = (
        quadratic_forms(lambda y, n=n, c=c: c.call(n, y, label), x, [probes])
        for n, c in ((twin, compute), (net, Compute()))
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))  # rounding, some 30 layers of it
    gradients = []
    for n, c in ((twin, compute), (net, Compute())):
        c.call(n, x, label).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in n.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=0, atol=2e-4 * float(gradients[1].abs().max()))


def test_winograd_wants_convolutions_and_their_layout():
    with pytest.raises(ValueError, match=r"needs 3x3 convolutions, of which UNet has \d+, and compute\.channels_last"):
        model(Compute(winograd=True))
    net = MLP(shape=(2,), width=8, depth=1, embedding=Fourier(8))
    with pytest.raises(ValueError, match="of which MLP has 0"):
        NetworkModel(
            net, EDM(0.002, 80.0), Parametrization.edm(0.5), compute=Compute(channels_last=True, winograd=True)
        )


@pytest.mark.parametrize(("switch", "module"), [("winograd", "winograd"), ("fused_norms", "group_norm")])
def test_what_is_in_c_wants_a_compiler_and_a_layout(switch, module, monkeypatch):
    def missing(*_):
        raise NoCompilerError("no C compiler 'cc' was found; install one")

    monkeypatch.setattr(f"scorefield.nets.{module}.library", missing)
    with pytest.raises(ValueError, match=rf"compute\.{switch}=true: no C compiler 'cc' was found; install one; or"):
        model(Compute(channels_last=True, **{switch: True}))
    with pytest.raises(ValueError, match=rf"compute\.{switch}=true needs .*compute\.channels_last=true"):
        model(Compute(**{switch: True}))
    with pytest.raises(ValueError, match=rf"compute\.{switch}=true and compute\.compiled=true exclude each other"):
        model(Compute(channels_last=True, compiled=True, **{switch: True}))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what the switch is about")
def test_memory_is_kept_where_asked_for():
    """Arrays of 64 MiB, one after another: by itself the C library asks the system for each page of each again."""
    program = (
        "import resource, sys, torch\n"
        "from torch import nn\n"
        "from scorefield.models import Compute\n"
        "Compute(keep_memory=sys.argv[1] == 'True').prepare(nn.Linear(1, 1))\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20):\n"  # until there is room for one beside another
        "    torch.ones(2**24), torch.ones(2**24)\n"
        "before = faults()\n"
        "for _ in range(4):\n"
        "    torch.ones(2**24), torch.ones(2**24)\n"
        "print(faults() - before)\n"
    )
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", program, str(keep)], check=True, capture_output=True).stdout)
        for keep in (True, False)
    )
    assert kept < 20 < 4 * 64 <= returned  # at least one for 2 MiB, the largest page


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (5, 7, 3, 3)])
def test_the_update_pairs_weights_and_gradients_whatever_their_layout(shape):
    """Adam's fused kernel walks along memory; weights with channels side by side get the update of the others."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, *shape, generator=generator)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.nn.Parameter(start.clone(memory_format=layout))
        optimizer = torch.optim.Adam([weight], 0.1, fused=True)
        for gradient in gradients:
            weight.grad = gradient.clone(memory_format=layout)
            optimizer.step()
        moved.append(weight.detach())
    assert (moved[0] - start).abs().min() > 0
    assert torch.allclose(*moved, rtol=0, atol=1e-14)  # of steps of 0.1, in double precision


def test_graphs_are_of_a_compiled_network():
    with pytest.raises(ValueError, match=r"compute\.graphs=true .* needs compute\.compiled=true"):
        model(Compute(graphs=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_graphs_keep_what_was_said_before(x):
    """Values of an earlier call stay as they were, and pull-backs go through the replayed network."""
    device = torch.device("cuda")
    plain, other = (model(c).eval().to(device) for c in (Compute(), Compute(compiled=True, graphs=True)))
    x, t = x.to(device), torch.tensor([0.1, 1.0, 10.0, 80.0], device=device)
    for _ in range(3):  # the first calls record
        first, second = other(x, t).data, other(2 * x, t).data
        assert torch.allclose(first, plain(x, t).data, atol=1e-3)
        assert torch.allclose(second, plain(2 * x, t).data, atol=1e-3)
        probes = Hutchinson(k=1).draw(x, StreamNoise(0))
        found, expected = (quadratic_forms(lambda y, m=m: m(y, t).data, x, [probes]) for m in (other, plain))
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_images_reach_the_network_with_their_channels_side_by_side():
    seen = []
    net = torch.nn.Conv2d(3, 3, 3, padding=1)
    net.register_forward_hook(lambda module, args, out: seen.extend([*args, out]))
    compute = Compute(channels_last=True)
    compute.prepare(net)
    compute.call(net, torch.randn(2, 3, 8, 8))
    assert [image.is_contiguous(memory_format=torch.channels_last) for image in seen] == [True, True]
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
