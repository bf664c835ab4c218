"""What evaluators measure does not depend on how they are run."""

import json

import pytest
import torch

from scorefield.cli.runs import build, newest_checkpoint
from scorefield.fokker_planck import residual
from scorefield.metrics.features import DigitFeatures
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance
from scorefield.noise import IndexedNoise
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks import quality
from scorefield.training.callbacks.samples import draw
from tests.training.tiny import checkpoint, digits, fit, journal, plane

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps on the digits, shared by the laws below."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("run")
    fit(digits(path))
    return path


def measured(run, *overrides) -> dict[str, dict]:
    """The final evaluation of the shared run's weights under other settings."""
    parts = build(digits(run.parent / "again", *overrides))
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest_checkpoint(RunDir(run)), verbose=False)
    return {
        name: m.record() for callback in parts.trainer.callbacks for name, m in getattr(callback, "metrics", {}).items()
    }


def again(run, kind: str, *overrides):
    """The averaged model of the shared run and its data, and the callback of a kind under other settings."""
    parts = build(digits(run.parent / "again", *overrides))
    parts.module.model.load_state_dict(checkpoint(run)["ema"]["state_dict"])
    return parts.module.model.eval(), parts.data, next(c for c in parts.trainer.callbacks if type(c).__name__ == kind)


def test_batch_size_changes_no_number(run):
    one = measured(run)
    other = measured(
        run,
        "callbacks.quality.batch_size=7",
        "callbacks.likelihood.batch_size=2",
        "++callbacks.loss_by_noise.batch_size=3",
    )
    assert one.keys() == other.keys()
    for name in one:
        # float32 layers round differently for other batch shapes; the network is evaluated a few times
        assert one[name]["value"] == pytest.approx(other[name]["value"], rel=1e-5), name


def test_every_number_names_its_weights_and_step(run):
    for name, record in measured(run).items():
        assert (record["weights"], record["step"]) == ("ema", 8), name
    for name, record in measured(run, "ema=none").items():
        assert (record["weights"], record["step"]) == ("raw", 8), name
    assert {line["weights"] for line in journal(run) if line["phase"] == "validation"} == {"ema"}


def test_the_distance_is_that_of_the_samples_it_says(run):
    """The recorded value and floor, recomputed from samples drawn one at a time and from the splits."""
    record = measured(run)["fd_digits"]
    model, data, quality = again(run, "SampleQuality")
    cpu = torch.device("cpu")
    singles = [draw(model, quality.sampler, data.data.shape, [i], 0, cpu)[0] for i in range(record["n"])]
    extractor = DigitFeatures()
    of = lambda x: FeatureStatistics.of(extractor.extract(x))  # noqa: E731
    train = of(data.train_split.x)
    standard = train.divided_by(train.std)
    ours, floor = of(data.data.from_model(torch.cat(singles))), of(data.test_split.x)
    # one sample that falls on the other side of a rounding to a grey level moves the distance by about 1e-4
    assert record["value"] == pytest.approx(frechet_distance(ours.divided_by(train.std), standard), rel=1e-3)
    assert record["floor"] == pytest.approx(frechet_distance(floor.divided_by(train.std), standard), rel=1e-9)
    assert (record["reference"], record["n_reference"], record["n_floor"]) == (
        "train",
        len(data.train_split),
        len(data.test_split),
    )


def test_a_sample_depends_on_the_seed_and_its_index_alone(run):
    model, _, grid = again(run, "SampleGrid", "sampler=ancestral", "sampler.steps=3")
    args = (grid.sampler, (1, 8, 8))
    cpu = torch.device("cpu")
    together, _ = draw(model, *args, [0, 1, 2, 3, 4], 5, cpu)
    shuffled, _ = draw(model, *args, [3, 9, 1], 5, cpu)
    # float32 rounding of other batch shapes
    torch.testing.assert_close(shuffled[[0, 2]], together[[3, 1]], atol=2e-5, rtol=0)
    assert not torch.isclose(together[0], together[1], atol=1e-3).all()
    assert not torch.isclose(draw(model, *args, [3], 6, cpu)[0], together[3], atol=1e-3).all()


def test_likelihood_is_that_of_the_dequantised_examples(run):
    """Bits per dimension by hand: dequantise, encode one example at a time, add the transform's log-determinant."""
    record = measured(run)["bits_per_dim"]
    model, batches, likelihood = again(run, "BitsPerDim")
    data, split = batches.data, batches.test_split
    nats = []
    for i in range(record["n"]):
        x = split.x[[i]].float() + IndexedNoise(0, "dequantise/0", [i]).uniform_like(torch.zeros(1, 1, 8, 8))
        y = data.transform.forward(x)
        nats.append(likelihood.flow.log_prob(model, y, noise=IndexedNoise(0, "probes/0", [i])))
    slope = data.transform.forward(torch.ones(1)) - data.transform.forward(torch.zeros(1))
    bits = -(torch.cat(nats).double().mean() / 64 + slope.double().log()) / torch.log(torch.tensor(2.0).double())
    assert record["value"] == pytest.approx(float(bits), rel=1e-5)  # float32 states of the solver


def test_the_error_bar_is_of_examples_not_of_draws(run):
    """Three draws of each of four examples are four examples: the spread of their means, not of twelve numbers."""
    asked = ["callbacks.likelihood.n_final=4", "callbacks.likelihood.draws=3"]
    record = measured(run, *asked)["bits_per_dim"]
    model, batches, likelihood = again(run, "BitsPerDim", *asked)
    data, split = batches.data, batches.test_split
    means = []
    for i in range(4):
        nats = []
        for number in range(3):
            u = IndexedNoise(0, f"dequantise/{number}", [i]).uniform_like(torch.zeros(1, 1, 8, 8))
            y = data.transform.forward(split.x[[i]].float() + u)
            nats.append(likelihood.flow.log_prob(model, y, noise=IndexedNoise(0, f"probes/{number}", [i])))
        means.append(torch.cat(nats).double().mean())
    bits = torch.stack(means) / 64 / torch.log(torch.tensor(2.0).double())
    assert record["standard_error"] == pytest.approx(float(bits.std() / 2), rel=1e-3)  # float32 states of the solver
    assert (record["n"], record["draws"]) == (4, 3)


def test_the_bound_is_that_of_the_dequantised_examples(run):
    """By hand, one example at a time, with a fitted dequantisation: -(bound + ln q) and the log-determinant."""
    asked = ["bound=variational", "callbacks.bound.bound.draws=3", "callbacks.bound.n_final=4"]
    asked += ["dequantisation=variational", "dequantisation.steps=3", "dequantisation.batch_size=4"]
    record = measured(run, *asked)["bits_per_dim_bound"]
    model, batches, evaluator = again(run, "BitsPerDimBound", *asked)
    data, split = batches.data, batches.test_split
    law = evaluator.dequantisation.dequantiser(model, data, batches.train_split, lambda _: None, 0, CPU)
    nats = []
    for i in range(4):
        x, log_q = law(split.x[[i]].float(), IndexedNoise(0, "dequantise/0", [i]))
        found = evaluator.bound(model, data.transform.forward(x), None, IndexedNoise(0, "probes/0", [i]))
        nats.append(found.nll + log_q)
    slope = data.transform.forward(torch.ones(1)) - data.transform.forward(torch.zeros(1))
    bits = (torch.cat(nats).double().mean() / 64 - slope.double().log()) / torch.log(torch.tensor(2.0).double())
    assert record["value"] == pytest.approx(float(bits), rel=1e-4)  # float32 networks
    assert (record["n"], record["nfe"], record["split"]) == (4, 6.0, "test")
    assert "steps=3" in record["dequantisation"]
    # The flow's likelihood takes the same draws.
    assert measured(run, *asked)["bits_per_dim"]["dequantisation"] == record["dequantisation"]


def test_the_chains_bound_is_that_of_the_grey_levels(run):
    """By hand, one example at a time: nothing is dequantised, and no transform adds its determinant."""
    asked = ["bound=chain", "callbacks.bound.chain.levels=6", "grid@callbacks.bound.chain.grid=karras"]
    asked += ["callbacks.bound.n_final=5", "callbacks.bound.batch_size=2", "+callbacks.bound.chain.grid.t_min=0.3"]
    record = measured(run, *asked)["bits_per_dim_chain"]
    model, batches, evaluator = again(run, "BitsPerDimChain", *asked)
    data, split = batches.data, batches.test_split
    codes = [evaluator.chain(model, split.x[[i]], data, None, IndexedNoise(0, "probes/0", [i])) for i in range(5)]
    bit = 64 * torch.log(torch.tensor(2.0, dtype=torch.float64))
    nll, distortion = (torch.cat([getattr(c, name) for c in codes]) / bit for name in ("nll", "distortion"))
    # float32 networks, whose error is squared and weighted
    assert record["value"] == pytest.approx(float(nll.mean()), rel=1e-4)
    assert record["standard_error"] == pytest.approx(float(nll.std() / 5**0.5), rel=1e-3)
    assert record["distortion"] == pytest.approx(float(distortion.mean()), rel=1e-4)
    assert min(record["rate"], record["distortion"]) > 0.1
    assert record["rate"] + record["distortion"] == pytest.approx(record["value"], rel=1e-9)
    assert record["rmse"] == pytest.approx(float(torch.cat([c.squared_error for c in codes]).mean().sqrt()), rel=1e-4)
    # Five steps, and the decoder twice.
    assert (record["n"], record["nfe"], record["steps"], record["dequantisation"]) == (5, 7.0, 6, "none")


def test_the_solvers_own_error_is_what_tightening_changes(run):
    loose = ["callbacks.likelihood.n_final=4", "callbacks.likelihood.n_check=4"]
    record = measured(run, *loose)["bits_per_dim"]
    tight = measured(run, *loose, "likelihood.solver.rtol=1e-4", "likelihood.solver.atol=1e-4")["bits_per_dim"]
    assert record["solver_error"] == pytest.approx(abs(record["value"] - tight["value"]), abs=1e-5)
    assert 0 < record["solver_error"] <= record["solver_error_max"]


def test_the_truncations_share_is_what_a_later_start_changes(run):
    """EDM's t_min is 0.002: the same number from 0.02 on."""
    loose = ["callbacks.likelihood.n_final=4", "callbacks.likelihood.n_check=4"]
    record = measured(run, *loose)["bits_per_dim"]
    later = measured(run, *loose, "+likelihood.t_min=0.02")["bits_per_dim"]
    assert record["t_min_tenfold_change"] == pytest.approx(later["value"] - record["value"], abs=1e-5)


def test_the_fokker_planck_residual_is_measured_by_level(tmp_path):
    node = {
        "_target_": "scorefield.training.callbacks.FokkerPlanckResidual",
        "run_dir": str(tmp_path),
        "levels": 3,
        "n": 5,
        "batch_size": 2,
    }
    config = plane(tmp_path, "steps=2")
    config["callbacks"]["fokker_planck"] = node
    fit(config)
    parts = build(config)
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest_checkpoint(RunDir(tmp_path)), verbose=False)
    callback = next(c for c in parts.trainer.callbacks if type(c).__name__ == "FokkerPlanckResidual")
    record = callback.metrics["fokker_planck_residual"].record()
    # By hand, one example at a time, at the middle level.
    parts.module.model.load_state_dict(checkpoint(tmp_path)["ema"]["state_dict"])
    model, data = parts.module.model.eval(), parts.data
    t = model.schedule.geometric_times(model.schedule.t_min, model.schedule.t_max, 3)[1]
    sums = torch.zeros(2, dtype=torch.float64)
    for i in range(5):
        x, noise = data.test_split.x[[i]], IndexedNoise(0, "residual", [i])
        x = data.data.to_model(x, IndexedNoise(0, "dequantise/0", [i]))
        noise.normal_like(x)  # of the level before
        x_t = model.schedule.perturb(x, t[None], noise.normal_like(x))
        found = residual(model, x_t, t[None])
        sums += torch.stack([found.value.double().square().sum(), found.rate.double().square().sum()]).detach()
    assert record["by_level"][1] == pytest.approx(float((sums[0] / sums[1]).sqrt()), rel=1e-4)  # float32 networks
    assert record["value"] == pytest.approx(sum(record["by_level"]) / 3)
    assert RunDir(tmp_path).figure("fokker_planck").is_file()


def test_toys_are_measured_in_nats(tmp_path):
    fit(plane(tmp_path, "steps=4"))
    names = {name for line in journal(tmp_path) for name in line if line["phase"] == "validation"}
    assert "nll_nats" in names
    assert "bits_per_dim" not in names


@pytest.mark.parametrize(("every", "steps"), [(1, [2, 4, 6, 8]), (2, [4, 8]), (3, [6]), (0, [])])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_every_counts_validations(tmp_path, every, steps, accumulated):
    config = plane(
        tmp_path,
        "steps=8",
        f"trainer.val_check_interval={2 * accumulated}",
        f"trainer.accumulate_grad_batches={accumulated}",
        f"callbacks.likelihood.every={every}",
    )
    fit(config)
    assert [line["step"] for line in journal(tmp_path) if line["phase"] == "validation"] == steps


def test_training_lines_are_means_of_the_losses_since_the_last_one(tmp_path):
    """Whatever the accumulation: the loss is per example, not per share of a step."""
    fit(plane(tmp_path / "fine", "callbacks.log.every=1", "steps=6"))
    fit(plane(tmp_path / "coarse", "callbacks.log.every=3", "steps=6"))
    fine = [line["loss"] for line in journal(tmp_path / "fine") if line["phase"] == "train"]
    coarse = [line["loss"] for line in journal(tmp_path / "coarse") if line["phase"] == "train"]
    assert coarse == pytest.approx([sum(fine[:3]) / 3, sum(fine[3:]) / 3], rel=1e-6)
    fit(plane(tmp_path / "sum", "callbacks.log.every=1", "steps=1", "trainer.accumulate_grad_batches=4"))
    fit(plane(tmp_path / "lazy", "callbacks.log.every=1", "steps=4", "optim.optimizer.lr=0.0"))
    apart = [line["loss"] for line in journal(tmp_path / "lazy") if line["phase"] == "train"]
    together = next(line["loss"] for line in journal(tmp_path / "sum") if line["phase"] == "train")
    assert together == pytest.approx(sum(apart) / 4, rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path):
    with pytest.raises(ArithmeticError, match="learning rate too high"):
        fit(plane(tmp_path, "optim=adam", "optim.optimizer.lr=1e30", "trainer.gradient_clip_val=null"))


def test_the_journal_is_json_line_by_line(run):
    for line in RunDir(run).metrics.read_text().splitlines():
        assert {"step", "images", "time", "phase"} <= json.loads(line).keys()


def test_the_extractor_is_no_part_of_what_is_trained(run):
    """It has run in the validations; the checkpoint, the average and the optimiser hold the model's own alone."""
    assert any("fd_digits" in line for line in journal(run) if line["phase"] == "validation")
    saved = checkpoint(run)
    model = build(digits(run.parent / "again")).module.model
    names = model.state_dict().keys()
    assert saved["state_dict"].keys() == {f"model.{name}" for name in names}
    assert saved["ema"]["state_dict"].keys() == names
    (optimizer,) = saved["optimizer_states"]
    assert len(optimizer["state"]) == len(list(model.parameters()))


def test_a_conditional_model_is_asked_for_every_class(tmp_path, monkeypatch):
    """Sample i is of class i mod 10, and the whole evaluation takes place."""
    asked = []
    plain = quality.draw

    def noted(model, sampler, shape, indices, seed, device, cond=None, trace=None):
        asked.extend(zip(indices, cond["label"].tolist(), strict=True))
        return plain(model, sampler, shape, indices, seed, device, cond, trace)

    monkeypatch.setattr(quality, "draw", noted)
    parts = fit(digits(tmp_path, "net.classes=10", "data.conditional=true", "steps=4"))
    parts.trainer.test(parts.module, parts.data, verbose=False)
    assert asked
    assert all(label == i % 10 for i, label in asked)
    assert {name for c in parts.trainer.callbacks for name in getattr(c, "metrics", {})} >= {
        "fd_digits",
        "bits_per_dim",
    }
