"""Laws of labels and input scales: against the schedules they stand for."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scorefield.models import (
    ChainIndex,
    Fixed,
    LadderIndex,
    Log,
    NearestLevel,
    NetworkModel,
    Parametrization,
    Sigma,
    Time,
    VPTime,
)
from scorefield.prediction import Noise, ScaledScore, Score
from scorefield.schedules import EDM, VE, VP, Tabulated


def test_ladder_index_counts_the_levels_from_the_noisiest():
    sigmas = np.geomspace(50.0, 0.01, 232)
    ladder = VE(0.01, 50.0, t_min=0.0)
    t = ladder.time_at(torch.from_numpy(sigmas))
    assert torch.equal(LadderIndex(232)(ladder, t), torch.arange(232.0))
    between = t[:-1] + 0.3 * (t[1:] - t[:-1])
    assert torch.equal(LadderIndex(232)(ladder, between), torch.arange(231.0))  # the nearer of the two
    assert LadderIndex(10)(ladder, torch.tensor([1.01, -0.01])).tolist() == [0, 9]


def test_chain_index_counts_the_levels_of_the_table():
    chain = Tabulated.linear(50, 1e-3, 0.1)
    survival = torch.from_numpy(np.cumprod(1 - np.linspace(1e-3, 0.1, 50)))
    t = chain.time_at(((1 - survival) / survival).sqrt())
    torch.testing.assert_close(ChainIndex(50)(chain, t), torch.arange(50.0), rtol=0, atol=1e-9)


def test_vp_time_is_the_inverse_of_vps_noise_level():
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) of Karras et al. 2022, table 1, written out."""
    t = torch.linspace(1e-5, 1, 101)
    sigma = torch.sqrt(torch.expm1(19.9 * t**2 / 2 + 0.1 * t))
    # float64, but 1 - alpha^2 at the first time is 1e-6 and costs six digits.
    torch.testing.assert_close(VPTime(0.1, 20.0, 999.0)(EDM(), sigma), 999 * t, rtol=1e-9, atol=1e-9)


def test_nearest_level_is_iddpms_index():
    """M - 1 - argmin_j |u_j - sigma| by search through all levels, u_j from the cosine of the index."""
    index = np.arange(1001)
    survival = np.cos(np.pi / 2 * (index / 1000 + 0.008) / 1.008) ** 2
    kept = np.cumprod(np.maximum(survival[1:] / survival[:-1], 0.001))
    u = np.sqrt(1 / kept - 1)[::-1]  # from the noisiest
    sigma = np.geomspace(0.003, 3e4, 401)
    expected = [999 - int(np.abs(u - level).argmin()) for level in sigma]
    label = NearestLevel(Tabulated.cosine(1000))
    assert label(EDM(), torch.from_numpy(sigma)).tolist() == expected
    assert label(EDM(), torch.from_numpy(u.copy())).tolist() == list(range(999, -1, -1))
    # Under another schedule it is the ratio that counts.
    t = torch.tensor([0.1, 0.4, 0.9])
    assert torch.equal(label(VP(), t), label(EDM(), VP().ratio(t)))


@pytest.mark.parametrize("name", ["edm_vp", "edm_ve", "edm_iddpm"])
def test_edms_conditioning_of_other_networks(name):
    """D = c_skip x + c_out F(c_in x, c_noise) with the columns of Karras et al. 2022, table 1, as conf has them."""
    net, sigma = Listener(), torch.tensor([0.02, 0.7, 40.0])
    conf = Path(__file__).parents[2] / "conf" / "parametrization"
    parametrization = instantiate(OmegaConf.load(conf / f"{name}.yaml"))
    x = torch.randn(3, 5) * sigma[:, None]
    out = NetworkModel(net, EDM(), parametrization)(x, sigma)
    c_out, c_in = (sigma, torch.ones(3)) if name == "edm_ve" else (-sigma, 1 / (sigma**2 + 1).sqrt())
    seen = c_in[:, None] * x
    torch.testing.assert_close(net.seen[0], seen)
    torch.testing.assert_close(out.data, x + c_out[:, None] * seen)  # c_skip = 1, and the network returns what it sees
    if name == "edm_ve":
        torch.testing.assert_close(net.seen[1], torch.log(sigma / 2))
    if name == "edm_vp":  # the inverse of sigma^2 = exp(19.9 t^2 / 2 + 0.1 t) - 1
        t = net.seen[1] / 999
        torch.testing.assert_close(torch.expm1(19.9 * t**2 / 2 + 0.1 * t), sigma**2)
    if name == "edm_iddpm":
        assert net.seen[1].tolist() == NearestLevel(Tabulated.cosine())(EDM(), sigma).tolist()


def test_log_and_factor():
    t = torch.tensor([0.02, 3.0])
    assert Log(Sigma(0.5))(EDM(), t).tolist() == pytest.approx([math.log(0.01), math.log(1.5)])


class Listener(torch.nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, label):
        self.seen = x, label
        return x + self.weight


def test_data_in_the_unit_interval_are_shown_as_minus_one_to_one():
    net = Listener()
    model = NetworkModel(net, VE(), Parametrization(ScaledScore(), Fixed(2.0), Time(), -1.0))
    model(torch.tensor([[0.0, 0.25, 1.0]]), torch.tensor([0.5]))
    assert net.seen[0].tolist() == [[-1.0, -0.5, 1.0]]


def test_an_output_divided_by_sigma_is_the_score():
    """The three conventions of one network: score, scaled score and noise differ by -sigma and -1 alone."""
    schedule, x, t = VP(), torch.randn(3, 4), torch.tensor([0.1, 0.5, 0.9])
    out = torch.randn(3, 4)

    class Answer(Listener):
        def forward(self, x, label):
            return self.factor * out

    def model(target, factor):
        net = Answer()
        net.factor = factor
        return NetworkModel(net, schedule, Parametrization(target))

    sigma = schedule.sigma(t)[:, None]
    score = model(Score(), 1 / sigma)(x, t).score
    torch.testing.assert_close(model(ScaledScore(), 1)(x, t).score, score)
    torch.testing.assert_close(model(Noise(), -1)(x, t).score, score)
