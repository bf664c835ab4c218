"""The couplings' map against its own Jacobian, and what each half may read."""

import pytest
import torch

from scorefield.nets.coupling import ConditionalCouplings


def trained(shape, couplings=4):
    """As after training: no weight is zero."""
    net = ConditionalCouplings(shape, width=8, couplings=couplings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 3, 3), (2, 2, 3)])
def test_log_determinant_is_that_of_the_jacobian(shape):
    net, c = trained(shape), torch.randn(3, *shape, dtype=torch.float64)
    y = torch.randn(3, *shape, dtype=torch.float64)
    found = net(y, c)[1]
    for i in range(3):
        jacobian = torch.func.jacrev(lambda v, i=i: net(v[None], c[i : i + 1])[0][0])(y[i]).reshape(2 * (y[i].numel(),))
        assert float(found[i].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-10)
    assert float(found.abs().min()) > 1e-3


def test_every_place_is_moved_and_depends_on_the_condition():
    net, y = trained((1, 4, 4)), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    one, other = (net(y, torch.full_like(y, c))[0] for c in (0.0, 1.0))
    assert ((one - y).abs() > 1e-6).all()
    assert ((one - other).abs() > 1e-6).all()


def test_it_starts_as_the_identity():
    y = torch.randn(2, 3, 4, 4)
    found, log_det = ConditionalCouplings((3, 4, 4))(y, torch.randn_like(y))
    assert torch.equal(found, y)
    assert torch.equal(log_det, torch.zeros(2))


@pytest.mark.parametrize(("shape", "couplings", "named"), [((2,), 4, r"shape=\(2,\)"), ((1, 2, 2), 3, "couplings=3")])
def test_what_is_no_such_map_is_refused(shape, couplings, named):
    with pytest.raises(ValueError, match=named):
        ConditionalCouplings(shape, couplings=couplings)
