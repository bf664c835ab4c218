"""What is particular to each source: preconditionings, ladders, layouts of weights, depths."""

import math

import numpy as np
import pytest
import torch

from scorefield.checkpoints import export, from_state, load, refinenet
from scorefield.checkpoints.edm import _qkv_apart
from scorefield.checkpoints.names import Settings
from scorefield.data.transforms import Affine, Compose, Logit
from scorefield.errors import BadFileError
from scorefield.schedules import VE, VP, SubVP, Tabulated
from tests.checkpoints.published import CONFIGS, changed, drawn


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def saved(tmp_path, source, config):
    state = drawn(source, config)
    torch.save(state, tmp_path / "state.pt")
    return state, tmp_path / "state.pt"


def table_1(kind, sigma):
    """c_skip, c_out, c_in and c_noise of Karras et al. 2022, table 1, at noise levels (B,), float64."""
    if kind == "EDMPrecond":
        d = 0.5
        n = (sigma**2 + d**2).sqrt()
        return d**2 / n**2, sigma * d / n, 1 / n, sigma.log() / 4
    if kind == "VEPrecond":
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()
    time = ((0.1**2 + 2 * 19.9 * torch.log1p(sigma**2)).sqrt() - 0.1) / 19.9
    return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), 999 * time


@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond", "VEPrecond"])
def test_edms_models_are_the_preconditioned_network(tmp_path, kind):
    config = changed(CONFIGS["edm"], preconditioning=kind)
    state, path = saved(tmp_path, "edm", config)
    net, model = from_state("edm", state, config), load("edm", path, config)
    sigma = torch.tensor([0.05, 0.8, 20.0], dtype=torch.float64)
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 3, -1])
    skip, out, scale, noise = (c.float()[:, None, None, None] for c in table_1(kind, sigma))
    expected = skip * x + out * net(scale * x, noise.flatten(), labels)
    found = model(x, sigma, {"label": labels}).data
    # Labels up to 999, rounded to float32 on both ways: phases of the fastest pair move by 1e-4 at most.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))
    # The levels that both the network and the authors' sampler, at 0.002 ... 80, know.
    assert (model.schedule.t_min, model.schedule.t_max) == (0.02 if kind == "VEPrecond" else 0.002, 80.0)


IDDPM = {**CONFIGS["edm"], "preconditioning": "iDDPMPrecond", "M": 50, "C_1": 0.5}
ADM = {"model_type": None, "label_dim": 0, "model_channels": 16}  # the network of this preconditioning


def iddpm_levels():
    """u_0 ... u_M of Karras et al. 2022, table 1, by their recursion from u_M = 0."""
    alpha_bar = [math.sin(0.5 * math.pi * j / 50 / 1.008) ** 2 for j in range(51)]
    u = [0.0]
    for j in range(50, 0, -1):
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], 0.5) - 1))
    return u


@pytest.mark.parametrize("change", [{}, {"decoder_type": "skip"}, ADM], ids=["song", "skip", "adm"])
def test_iddpms_models_use_the_first_half_of_the_network(tmp_path, change):
    """D = x - sigma F(x / sqrt(sigma^2 + 1), M - 1 - j) with the first half of F (Karras et al. 2022, C.3.3)."""
    config = changed(IDDPM, **change)
    state, path = saved(tmp_path, "edm", config)
    model, u = load("edm", path, config), iddpm_levels()
    j = [1, 25, 48]
    x, sigma = torch.randn(3, 3, 8, 8), torch.tensor([u[i] for i in j], dtype=torch.float64)
    net = from_state("edm", state, config)
    label = torch.tensor([49.0 - i for i in j])
    wide = sigma.float()[:, None, None, None]
    expected = x - wide * net(x / (wide**2 + 1).sqrt(), label)
    found = model(x, sigma).data
    # sigma itself is rounded to float32 in one of the two
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    assert model.schedule.t_min == pytest.approx(u[49], rel=1e-12)
    assert model.schedule.t_max == pytest.approx(u[0], rel=1e-12)
    again = load("scorefield", export(model, tmp_path / "own"))
    assert torch.equal(again(x, sigma).data, found)
    # All of six channels is in the file, and the first three are what counts.
    last = [name for name in state if "out_conv." in name or "aux_conv." in name]
    assert {len(state[name]) for name in last} == {6}
    for half, counts in ((slice(3), True), (slice(3, 6), False)):
        other = {name: tensor.clone() for name, tensor in state.items()}
        for name in last:
            other[name][half] += 1
        assert torch.equal(from_state("edm", other, config)(x, label), net(x, label)) != counts
    with pytest.raises(BadFileError, match=r"to make a tensor of shape \(3, \d+, 3, 3\), found \S+ \(6, "):
        load("edm", path, changed(config, preconditioning="EDMPrecond"))
    for name in last:
        state[name] = state[name][:3]
    with pytest.raises(BadFileError, match="weights are those of another configuration"):
        from_state("edm", state, config)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_queries_keys_and_values_are_taken_apart_by_head(heads):
    """Row (head, channel, k) of EDM's matrix becomes row (k, head, channel)."""
    channels = 4
    rows = [(h, c, k) for h in range(heads) for c in range(channels) for k in range(3)]
    wanted = [(h, c, k) for k in range(3) for h in range(heads) for c in range(channels)]
    labelled = torch.tensor([[100 * h + 10 * c + k for h, c, k in rows]]).T
    assert _qkv_apart(labelled, heads)[:, 0].tolist() == [100 * h + 10 * c + k for h, c, k in wanted]


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_of_adm_has_heads_of_64_channels(heads):
    config = {
        "preconditioning": "EDMPrecond",
        "model_type": "DhariwalUNet",
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": 0,
        "model_channels": 64,
        "channel_mult": [heads],
        "num_blocks": 1,
        "attn_resolutions": [8],
    }
    state = drawn("edm", config)
    attention = from_state("edm", state, config).net.encoder[0].stages[0].attention
    assert attention.heads == heads
    assert attention.qkv.weight.shape == (3 * 64 * heads, 64 * heads, 1, 1)


@pytest.mark.parametrize(
    ("change", "schedule"),
    [
        ({"training__sde": "vpsde", "model__scale_by_sigma": False, "model__embedding_type": "positional"}, VP),
        ({"training__sde": "subvpsde", "model__scale_by_sigma": False, "model__embedding_type": "positional"}, SubVP),
        ({}, VE),
    ],
)
def test_score_sdes_continuous_models(tmp_path, change, schedule):
    """The score is the published one: the output itself under VE, -output / std under VP and sub-VP at 999 t."""
    config = changed(CONFIGS["score_sde"], **change)
    state, path = saved(tmp_path, "score_sde", config)
    net, model = from_state("score_sde", state, config), load("score_sde", path, config)
    assert type(model.schedule) is schedule
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([0.2, 0.9], dtype=torch.float64)
    if schedule is VE:
        expected = net(x, (0.01 * 5000**t).float())
    else:
        log_alpha = -(t**2) * 19.9 / 4 - t * 0.1 / 2
        variance = 1 - (2 * log_alpha).exp()
        std = variance if schedule is SubVP else variance.sqrt()
        expected = -net(x, (999 * t).float()) / std.float()[:, None, None, None]
    # Phases of up to 30 from labels that are rounded once more.
    torch.testing.assert_close(model(x, t).score, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


def test_score_sdes_discrete_models(tmp_path):
    """At each level of the chain, and of the ladder, the network is told that level's index."""
    base = {"training__continuous": False, "model__embedding_type": "positional"}
    config = changed(CONFIGS["score_sde"], **base)
    state, path = saved(tmp_path, "score_sde", config)
    model, net = load("score_sde", path, config), from_state("score_sde", state, config)
    sigmas = np.geomspace(50, 0.01, 20)
    index = torch.tensor([0, 7, 19])
    x = torch.rand(3, 3, 8, 8)
    t = model.schedule.time_at(torch.from_numpy(sigmas)[index])
    torch.testing.assert_close(model(x, t).score, net(x, index), rtol=1e-5, atol=1e-5)
    # Between two levels the network is told the nearer one, whose sigma then divides (authors' get_score_fn).
    between = (t + torch.tensor([-0.02, 0.02, 0.02])).double()
    torch.testing.assert_close(model(x, between).score, net(x, index), rtol=1e-5, atol=1e-5)
    low = {"model__beta_min": 0.02, "model__beta_max": 2.0}
    config = changed(config, training__sde="vpsde", model__scale_by_sigma=False, **low)
    model, net = load("score_sde", path, config), from_state("score_sde", state, config)
    assert isinstance(model.schedule, Tabulated)
    survival = torch.from_numpy(np.cumprod(1 - np.linspace(0.02 / 20, 2.0 / 20, 20)))[index]
    t = model.schedule.time_at(((1 - survival) / survival).sqrt())
    expected = -net(x, index) / (1 - survival).sqrt().float()[:, None, None, None]
    torch.testing.assert_close(model(x, t).score, expected, rtol=1e-4, atol=1e-4)


def test_a_network_that_is_not_told_its_noise_level_may_carry_frequencies(tmp_path):
    told = changed(CONFIGS["score_sde"])
    untold = changed(told, model__conditional=False)
    state = drawn("score_sde", untold)
    shifted = {
        f"all_modules.{int(name.split('.')[1]) + 1}.{name.split('.', 2)[2]}": tensor for name, tensor in state.items()
    }
    shifted["all_modules.0.W"] = torch.ones(8)
    net = from_state("score_sde", shifted, untold)
    x, sigma = torch.rand(2, 3, 8, 8), torch.tensor([0.3, 3.0])
    a, b = net(x, sigma), net(x, 2 * sigma)
    torch.testing.assert_close(a, 2 * b)  # of sigma it knows nothing; its output is divided by it


@pytest.mark.parametrize("depth", [("1", "2", "3", "4"), ("1", "2", "3", "4", "5"), ("1", "2", "3", "31", "4", "5")])
def test_the_depth_of_ncsnv2_is_read_off_its_weights(depth):
    settings = Settings(CONFIGS["ncsnv2"], "ncsnv2")
    deep = refinenet.network(settings, depth)
    rules = refinenet.rules(deep, depth)
    assert len({name for rule in rules for name in rule.theirs}) == len(rules) == len(deep.state_dict())
    state = {rule.theirs[0]: deep.state_dict()[rule.ours] for rule in rules}
    net = from_state("ncsnv2", state, CONFIGS["ncsnv2"])
    x, index = torch.rand(2, 3, 16, 16), torch.tensor([0, 9])
    sigmas = torch.tensor([10.0, 0.01])[:, None, None, None]
    torch.testing.assert_close(net(x, index), deep(2 * x - 1) / sigmas)


def test_score_sdes_ncsnv2_is_ermongroups_in_other_words(tmp_path):
    state, path = saved(tmp_path, "ncsnv2", CONFIGS["ncsnv2"])
    words = {"nf": 8, "num_scales": 10, "sigma_max": 10.0, "normalization": "InstanceNorm++", "nonlinearity": "elu"}
    config = changed(CONFIGS["score_sde"], model__name="ncsnv2_64", training__continuous=False)
    config["model"] |= words
    x, index = torch.rand(2, 3, 8, 8), torch.tensor([2, 5])
    out = from_state("score_sde", state, config)(x, index)
    assert torch.equal(out, from_state("ncsnv2", state, CONFIGS["ncsnv2"])(x, index))
    torch.save({"model": state, "ema": {"shadow_params": [2 * w for w in state.values()]}}, tmp_path / "both.pt")
    model, theirs = load("score_sde", tmp_path / "both.pt", config, "raw"), load("ncsnv2", path, CONFIGS["ncsnv2"])
    sigma = torch.from_numpy(np.geomspace(10, 0.01, 10))[index]
    t = model.schedule.time_at(sigma)
    assert torch.equal(model(x, t).score, theirs(x, t).score)
    torch.testing.assert_close(model(x, t).score, out)
    average = from_state("ncsnv2", {name: 2 * w for name, w in state.items()}, CONFIGS["ncsnv2"])(x, index)
    torch.testing.assert_close(load("score_sde", tmp_path / "both.pt", config)(x, t).score, average)
    centred = changed(config, data__centered=True)
    assert load("score_sde", path, centred).transform == Affine(128.0, 128.0)
    torch.testing.assert_close(from_state("score_sde", state, centred)(2 * x - 1, index), out)
    with pytest.raises(ValueError, match=r"training\.continuous=True"):
        from_state("score_sde", state, changed(config, training__continuous=True))
    with pytest.raises(ValueError, match=r"training\.sde='vpsde'"):
        from_state("score_sde", state, changed(config, training__sde="vpsde"))


@pytest.mark.parametrize("source", ["ncsn", "ncsnv2"])
def test_another_normalisation_is_refused_by_name(source):
    """Its weights could have the same names."""
    state = drawn(source, CONFIGS[source])
    with pytest.raises(ValueError, match=r"model\.normalization='variancenorm' must be one of instancenorm\+\+"):
        from_state(source, state, changed(CONFIGS[source], model__normalization="VarianceNorm"))


@pytest.mark.parametrize("logit", [False, True])
def test_ncsns_baseline_is_known_by_its_weights(tmp_path, logit):
    """A network of one noise level under NCSN's names, which a file alone tells from NCSN."""
    config = changed(CONFIGS["ncsn"], data__logit_transform=logit)
    settings = Settings(config, "ncsn")
    baseline = refinenet.network(settings, told=False)
    with torch.no_grad():
        for w in baseline.parameters():
            w.add_(0.1 * torch.randn_like(w))
    state = {rule.theirs[0]: baseline.state_dict()[rule.ours] for rule in refinenet.rules(baseline, "1234")}
    assert {"normalizer.alpha", "refine1.crp.norms.0.gamma", "refine4.output_convs.3_2_norm.beta"} <= set(state)
    torch.save([{f"module.{name}": w for name, w in state.items()}, {}], tmp_path / "checkpoint.pth")
    model = load("ncsn", tmp_path / "checkpoint.pth", config)
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([0.2, 0.9])
    expected = baseline(x if logit else 2 * x - 1, t)
    torch.testing.assert_close(model(x, t).score, expected)
    torch.testing.assert_close(from_state("ncsn", state, config)(x, t), expected)
    assert torch.equal(model.schedule.sigma(t), torch.tensor([0.01, 0.01]))
    with pytest.raises(BadFileError, match="use source 'ncsn'"):
        from_state("ncsnv2", state, CONFIGS["ncsnv2"])


def test_data_that_are_scaled_already_are_not_scaled_again(tmp_path):
    for change, transform in (
        ({"data__rescaled": True}, Affine(128.0, 128.0)),
        ({"data__logit_transform": True}, Compose((Affine(0.0, 256.0), Logit(1e-6)))),
        ({}, Affine(0.0, 256.0)),
    ):
        config = changed(CONFIGS["ncsnv2"], **change)
        state, path = saved(tmp_path, "ncsnv2", config)
        net, model = from_state("ncsnv2", state, config), load("ncsnv2", path, config)
        x, index = torch.rand(2, 3, 8, 8), torch.tensor([2, 5])
        seen = x if change else 2 * x - 1
        sigmas = torch.from_numpy(np.geomspace(10, 0.01, 10)).float()[index][:, None, None, None]
        torch.testing.assert_close(net(x, index), net.net(seen) / sigmas)
        assert model.transform == transform
