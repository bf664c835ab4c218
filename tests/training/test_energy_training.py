"""Energies in training: two processes make one run, chains survive an interruption, a diverging run is ended."""

import pytest
import torch

from scorefield.cli.runs import UserError, build
from scorefield.data import Mixture, TwoMoons
from scorefield.data.transforms import Affine, Compose, Identity
from scorefield.errors import NumericalError
from scorefield.objectives import PersistentContrastiveDivergence
from scorefield.records.rundir import RunDir
from scorefield.schedules import Constant
from scorefield.training.callbacks.truth import truth_of
from tests.training.test_resume import interrupted_is_uninterrupted
from tests.training.test_two_processes import launch
from tests.training.tiny import checkpoint, differences, energy, fit, journal

PERSISTENT = ["objective=pcd", "objective.chains=40", "objective.k=2", "callbacks.checkpoint.every=3"]


def test_two_processes_train_the_energy_of_one(tmp_path):
    """Exact score matching on clean data draws nothing, so only the order of summation differs; no unused parameter."""
    launch("tests.training.two_processes", str(tmp_path), "trainer.precision=64-true", ENERGY="1")
    states = [torch.load(tmp_path / f"process-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert differences(states[0]["weights"], states[1]["weights"]) == []
    parts = fit(energy(tmp_path / "alone", "optim=adam", "trainer.precision=64-true"))
    for name, weight in parts.module.model.state_dict().items():
        # float64 sums in another order, amplified by Adam's division by small second moments.
        assert torch.allclose(states[0]["weights"][name], weight, rtol=1e-6, atol=1e-6), name
    # Their distances to the truth are those of one process, which measures all examples itself.
    for name in ("fisher_divergence", "total_variation"):
        shared, alone = ([line[name] for line in journal(tmp_path / run) if name in line] for run in ("run", "alone"))
        assert len(shared) == 2
        assert shared == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("step", [4, 7])
def test_chains_survive_an_interruption(tmp_path, step):
    newest = interrupted_is_uninterrupted(lambda path: energy(path, *PERSISTENT), tmp_path, step)
    assert newest is not None
    chains = [checkpoint(tmp_path / name)["processes"][0]["buffer"] for name in ("whole", "broken")]
    assert torch.equal(*chains)
    assert chains[0].shape == (40, 2)


def test_every_process_finds_its_own_chains_again(tmp_path):
    """Two processes, their chains in one checkpoint; another number of processes is refused."""
    launch("tests.training.two_processes", str(tmp_path), *PERSISTENT, ENERGY="1")
    path = RunDir(tmp_path / "run").checkpoints()[-1]
    states = torch.load(path, weights_only=True)["processes"]
    assert len(states) == 2
    assert not torch.isclose(states[0]["buffer"], states[1]["buffer"]).any()
    with pytest.raises(UserError, match=r"chains of 2 processes, and this run has 1.*trainer.devices=2"):
        fit(energy(tmp_path / "run", *PERSISTENT, "steps=12"), path)


def test_the_journal_tells_energies_and_temperature(tmp_path):
    fit(energy(tmp_path, *PERSISTENT))
    lines = [line for line in journal(tmp_path) if line["phase"] == "train"]
    assert lines
    for line in lines:
        assert line["energy_gap"] == pytest.approx(line["energy_data"] - line["energy_chains"], abs=1e-5)
        assert line["loss"] == pytest.approx(line["energy_gap"], abs=1e-5)  # no penalty
        assert line["temperature"] == 1.0


def test_a_diverging_run_is_ended_with_advice(tmp_path):
    """Chains that cannot follow: steps of 1e-9 and a learning rate that moves the energy far in each step."""
    wild = ["objective=pcd", "objective.kernel.step_size.epsilon=1e-9", "optim=adam", "optim.optimizer.lr=3.0"]
    quick = ["callbacks.energy_gap.every=1", "callbacks.energy_gap.limit=5", "steps=60"]
    with pytest.raises(NumericalError, match=r"(?s)the mean energy gap .* smaller learning rate \(now 3\)"):
        fit(energy(tmp_path, *wild, *quick))
    assert not RunDir(tmp_path).result.exists()


def test_a_healthy_run_is_left_alone(tmp_path):
    parts = fit(energy(tmp_path, *PERSISTENT, "callbacks.energy_gap.every=1"))
    assert parts.trainer.global_step == 8
    assert isinstance(parts.module.objective, PersistentContrastiveDivergence)


@pytest.mark.parametrize(("batch_size", "other"), [(21, 4)])
def test_distances_to_the_truth_do_not_depend_on_the_batch(tmp_path, batch_size, other):
    runs = [build(energy(tmp_path / str(size), f"callbacks.fisher.batch_size={size}")) for size in (batch_size, other)]
    found = []
    for parts in runs:
        parts.trainer.test(parts.module, parts.data, verbose=False)
        found.append({n: m.value for c in parts.trainer.callbacks for n, m in getattr(c, "metrics", {}).items()})
    assert found[0]["fisher_divergence"] == pytest.approx(found[1]["fisher_divergence"], rel=1e-6)
    assert {"fisher_divergence", "total_variation"} <= found[0].keys()


def test_chains_are_reported_with_their_protocol(tmp_path):
    """An untrained energy is nearly its Gaussian, which 200 steps of a chain can tell."""
    long = ["callbacks.chains.draws=200", "callbacks.chains.burn_in=50", "callbacks.chains.chains=6"]
    parts = build(energy(tmp_path, *long, "callbacks.chains.kernel.step_size.epsilon=1.0"))
    parts.trainer.test(parts.module, parts.data, verbose=False)
    found = {n: m for c in parts.trainer.callbacks for n, m in getattr(c, "metrics", {}).items()}
    assert 1 <= found["effective_sample_size"].value <= 6 * 200
    assert found["r_hat"].value == max(found["r_hat"].protocol["each"]) < 1.2
    assert 0 < found["acceptance"].protocol["lowest"] <= found["acceptance"].value <= 1
    assert found["r_hat"].protocol["nfe"] == 2 * 250
    with pytest.raises(UserError, match=r"kernel.adapt=60 steps of adaptation are more than burn_in=50"):
        build(energy(tmp_path, "callbacks.chains.burn_in=50", "callbacks.chains.kernel.adapt=60"))


@pytest.mark.parametrize("transform", [Identity(), Affine(0.3, -2.5), Compose((Affine(1.0, 2.0), Affine(-0.2, 0.4)))])
def test_the_truth_in_model_space_is_the_datas_density(transform):
    """By the change of variables: log p_data(x) = log p_model(y) + log|det dy/dx|."""
    data = Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.2, 0.6], transform=transform)
    x = data.test().x[:50].double()
    truth = truth_of(data, Constant(0.0))
    found = truth.log_prob(transform.forward(x), torch.zeros(50)) + transform.log_abs_det(x)
    assert torch.allclose(found, data.log_prob(x), rtol=1e-10)


def test_a_truth_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="two_moons has no density in closed form"):
        truth_of(TwoMoons(), Constant(0.0))
