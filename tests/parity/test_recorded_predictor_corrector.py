"""Single steps and whole predictor-corrector runs of the reference implementation, draw by draw."""

import pytest
import torch

from scorefield.grids import Given, Uniform
from scorefield.kernels import (
    Ancestral,
    BatchSignalToNoise,
    Euler,
    EulerMaruyama,
    Langevin,
    ReverseDiffusion,
    SigmaStep,
    SignalToNoise,
    Stay,
)
from scorefield.samplers import Sampler
from tests.parity.conftest import ReadAt, Replay, chain, continuous_sde, exact_model

N = 1000
TIMES = [0.05, 0.6, 1.0]
SNR, ALD_SNR = 0.16, 0.176
ANCESTRAL = {"ve": Ancestral(), "vp": Ancestral(forward_variance=True)}


@pytest.fixture
def numbers(recorded):
    return recorded("predictor_corrector")


def agree(found, expected, size=1.0):
    """Within float32 arithmetic, in which the reference runs: ten roundings of 6e-8 of the largest terms.

    Args:
        size: extra factor, where terms are larger than the state or a rounding grows along a run.
    """
    scale = float(expected.abs().max().clamp(min=1))
    error = float((found - expected.double()).abs().max())
    assert error < 6e-7 * scale * size, error


def last_silent(draws):
    """The draws with zeros for the last: what leaves the mean of the last move."""
    return [*draws[:-1], torch.zeros_like(draws[-1])]


def on_the_chain(sde, n, t):
    """A model on the reference's chain of n levels, with the times of the level that belongs to t and of the next."""
    index = int(torch.tensor(t, dtype=torch.float32) * (n - 1))
    model = ReadAt(chain(sde, n), exact_model(sde), lambda level: torch.full_like(level, t))
    return model, torch.full((8,), (index + 1) / n), torch.full((8,), index / n)


def setting(procedure, sde, t):
    """Kernel, model and its two times for one recorded procedure."""
    now = torch.full((8,), t)
    if procedure == "euler_maruyama" or (sde == "subvp" and procedure == "reverse_diffusion"):
        return EulerMaruyama(), exact_model(sde), now, now - 1 / N
    if sde == "subvp":
        return Euler(), exact_model(sde), now, now - 1 / N
    kernels = {
        "reverse_diffusion": ReverseDiffusion(),
        "reverse_diffusion_pf": ReverseDiffusion(eta=0.0),
        "ancestral_sampling": ANCESTRAL.get(sde),
    }
    return kernels[procedure], *on_the_chain(sde, N, t)


PREDICTORS = [
    (sde, procedure)
    for sde in ("ve", "vp", "subvp")
    for procedure in ("euler_maruyama", "reverse_diffusion", "reverse_diffusion_pf", "ancestral_sampling")
    if (sde, procedure) != ("subvp", "ancestral_sampling")
]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("sde", "procedure"), PREDICTORS)
def test_one_predictor_step(numbers, sde, procedure, t):
    x, z = numbers[f"{sde}/t{t}/x"].double(), numbers["noise"][:1]
    kernel, model, at, to = setting(procedure, sde, t)
    for name, draws in (("x", z), ("x_mean", last_silent(z))):
        found = kernel.step(model, x, at, to, {}, Replay(draws))[0]
        agree(found, numbers[f"{sde}/t{t}/{procedure}/{name}"])


def corrector(name, sde, rule=BatchSignalToNoise):
    """The recorded correctors: DDPM's chain scales the step for VP, a = 1 - beta_i, and a = 1 for VE."""
    length = N if sde == "vp" else None
    return Langevin(rule(SNR, length)) if name == "langevin" else Langevin(SigmaStep(ALD_SNR, length))


def corrected(kernel, sde, x, t, draws):
    # The chain's a belongs to the level floor(999 t), up to 1/999 below t: at most 2e-5 of 1 - beta, 1e-5 of a move.
    model, at, noise = exact_model(sde), torch.full((len(x),), t), Replay(draws)
    for _ in range(len(draws)):
        x, _ = kernel.step(model, x, at, at, {}, noise)
    return x


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("sde", ["ve", "vp"])
@pytest.mark.parametrize("name", ["langevin", "ald"])
@pytest.mark.parametrize("steps", [1, 3])
def test_corrector_steps(numbers, name, sde, t, steps):
    x, draws = numbers[f"{sde}/t{t}/x"].double(), numbers["noise"][:steps].double()
    key = f"{sde}/t{t}/{name}_{steps}"
    found = corrected(corrector(name, sde), sde, x, t, draws)
    # VE's state spreads over 50 while the recorded steps move it by a third of its size: roundings of either.
    level_error = 0 if sde == "ve" else 10
    agree(found, numbers[f"{key}/x"], size=steps + level_error)
    # x_mean is the last drift without its noise: x - sqrt(2 epsilon) z with epsilon from the two moves.
    before = corrected(corrector(name, sde), sde, x, t, draws[:-1])
    model, at = exact_model(sde), torch.full((8,), t)
    score = model(before, at).score
    epsilon = corrector(name, sde).step_size(model.schedule, at, score, draws[-1]).reshape(-1, 1, 1, 1)
    agree(before + epsilon * score, numbers[f"{key}/x_mean"], size=steps + level_error)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_per_sample_rule_is_the_batch_rule_of_one(numbers, sde, t):
    """The mean over a batch of one is the sample's own norm; in the batch of eight it is not."""
    x, draws = numbers[f"{sde}/t{t}/x"].double(), numbers["noise"][:3].double()
    ours = corrected(corrector("langevin", sde, SignalToNoise), sde, x, t, draws)
    alone = torch.cat(
        [corrected(corrector("langevin", sde), sde, x[i : i + 1], t, draws[:, i : i + 1]) for i in range(8)]
    )
    # The same arithmetic on one row and on eight.
    assert torch.allclose(ours, alone, rtol=1e-12, atol=1e-12)
    assert float((ours - numbers[f"{sde}/t{t}/langevin_3/x"]).abs().max()) > 1e-3


def grid_of(numbers, run):
    """The reference's n times from 1 to eps, as it rounds them."""
    facts = numbers.manifest["pc_runs"][run]
    return torch.linspace(1, facts["eps"], facts["N"], dtype=torch.float32).double()


def walk(numbers, run, predictor, correctors=None):
    """The reference's order: at each time the corrector's steps, then the predictor's.

    Args:
        predictor: kernel, model and two times, for the reference's time t.
        correctors: kernel, model and time for the reference's time t, and how many steps.
    """
    sde = run.split("/")[1].split("_")[0]
    for name in ("x", "x_mean"):
        draws = numbers["pc/noise"][: numbers.manifest["pc_runs"][run]["noises_used"]].double()
        noise = Replay(last_silent(draws) if name == "x_mean" else draws)
        x = continuous_sde(sde).prior_like(draws[0], noise)
        for t in grid_of(numbers, run).tolist():
            if correctors is not None:
                (kernel, model, at), count = correctors(t)
                for _ in range(count):
                    x = kernel.step(model, x, at, at, {}, noise)[0]
            kernel, model, at, to = predictor(t)
            x = kernel.step(model, x, at, to, {}, noise)[0]
        yield name, x, numbers[f"{run}/{name}"]


@pytest.mark.parametrize("sde", ["vp", "subvp"])
def test_run_of_euler_maruyama(numbers, sde):
    """Steps of 1/N on a grid of N times from 1 to eps, as published: not the grid's own spacing."""
    run = f"pc/{sde}_euler_maruyama_none_1"

    def predictor(t):
        now = torch.full((8,), t)
        return EulerMaruyama(), exact_model(sde), now, now - 1 / 40

    for _, found, expected in walk(numbers, run, predictor):
        # Each of the forty steps forgets the roundings before it by as much as it moves.
        agree(found, expected, size=4)


@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_run_of_ancestral_sampling(numbers, sde):
    run = f"pc/{sde}_ancestral_sampling_none_1"
    for _, found, expected in walk(numbers, run, lambda t: (ANCESTRAL[sde], *on_the_chain(sde, 40, t))):
        agree(found, expected, size=4)


def test_run_of_reverse_diffusion_and_langevin_on_vp(numbers):
    """The corrector's a = 1 - beta_i is the continuous schedule's at t = i / (N - 1)."""

    def corrector_at(t):
        level = round(t * 39 - 0.02) / 39
        model = ReadAt(continuous_sde("vp"), exact_model("vp"), lambda at: torch.full_like(at, t))
        return (Langevin(BatchSignalToNoise(SNR, chain=40)), model, torch.full((8,), level)), 2

    run = "pc/vp_reverse_diffusion_langevin_2"
    found = list(walk(numbers, run, lambda t: (ReverseDiffusion(), *on_the_chain("vp", 40, t)), corrector_at))
    for _, x, expected in found:
        agree(x, expected, size=4)


def sampled(numbers, run, sampler, model):
    """One recorded run through the public Sampler, with and without its last noise."""
    for name in ("x", "x_mean"):
        draws = numbers["pc/noise"][: numbers.manifest["pc_runs"][run]["noises_used"]].double()
        noise = Replay(last_silent(draws) if name == "x_mean" else draws)
        samples = sampler(model, continuous_sde(run[3:5]).prior_like(draws[0], noise), noise=noise)
        assert samples.nfe == numbers.manifest["pc_runs"][run]["actual_network_calls"]
        yield samples.x, numbers[f"{run}/{name}"]


def clock(n, eps):
    """The reference's time 1 - k (1 - eps) / (n - 1) at the chain's level n - k."""
    return lambda level: 1 - (n - level * n) / (n - 1) * (1 - eps)


@pytest.mark.parametrize(
    ("run", "predictor", "correct"),
    [
        ("ve_reverse_diffusion_langevin_1", ReverseDiffusion(), Langevin(BatchSignalToNoise(SNR))),
        ("ve_ancestral_sampling_none_1", ANCESTRAL["ve"], None),
        ("vp_ancestral_sampling_none_1", ANCESTRAL["vp"], None),
    ],
)
def test_run_of_the_sampler_on_a_chain(numbers, run, predictor, correct):
    """The chain down to clean data is a uniform grid of its levels."""
    eps = numbers.manifest["pc_runs"][f"pc/{run}"]["eps"]
    model = ReadAt(chain(run[:2], 40), exact_model(run[:2]), clock(40, eps))
    for found, expected in sampled(numbers, f"pc/{run}", Sampler(Uniform(t_min=0.0), 40, predictor, correct), model):
        agree(found, expected, size=4)


@pytest.mark.parametrize(
    ("run", "predictor", "correct", "size"),
    [
        # As above.
        ("vp_euler_maruyama_none_1", EulerMaruyama(chain=40), None, 4),
        ("subvp_euler_maruyama_none_1", EulerMaruyama(chain=40), None, 4),
        # The corrector's a is that of t and not of the level below, at most eps = 1e-3 away: 19.9 / 40 eps of a move of
        # a third of the noise, 2e-4.
        (
            "vp_reverse_diffusion_langevin_2",
            ReverseDiffusion(chain=40),
            Langevin(BatchSignalToNoise(SNR, chain=40)),
            300,
        ),
        # So are all levels, at most eps = 1e-5 away: ln(5000) eps = 9e-5 of them.
        ("ve_reverse_diffusion_langevin_1", ReverseDiffusion(), Langevin(BatchSignalToNoise(SNR)), 150),
    ],
)
def test_run_of_a_composed_sampler(numbers, run, predictor, correct, size):
    """The published run as a user composes it: continuous schedule, uniform grid, the mean of the last move."""
    facts, sde = numbers.manifest["pc_runs"][f"pc/{run}"], run.split("_")[0]
    draws = numbers["pc/noise"][: facts["noises_used"]].double()
    noise = Replay(draws)
    x = continuous_sde(sde).prior_like(draws[0], noise)
    sampler = Sampler(
        grid=Uniform(t_min=facts["eps"]),
        steps=39,
        predictor=predictor,
        corrector=correct,
        corrections=facts["n_steps"],
        denoise_last=True,
        correct_last=correct is not None,
    )
    samples = sampler(exact_model(sde), x, noise=noise)
    assert samples.nfe == facts["actual_network_calls"]
    agree(samples.x, numbers[f"pc/{run}/x_mean"], size)


def test_run_of_annealed_langevin_dynamics(numbers):
    run = "pc/ve_none_ald_5"
    times = [*grid_of(numbers, run).tolist(), 0.0]
    sampler = Sampler(Given(times), 40, Stay(), Langevin(SigmaStep(ALD_SNR)), corrections=5)
    (found, expected), (_, without_last_noise) = sampled(numbers, run, sampler, exact_model("ve"))
    agree(found, expected, size=4)
    # With no predictor there is no mean to take: the reference returns the state itself.
    assert torch.equal(expected, without_last_noise)
