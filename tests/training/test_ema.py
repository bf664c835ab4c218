"""The averaged weights: their arithmetic, who sees them, and what an accident leaves of them."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from scorefield.data import Mixture
from scorefield.models import NetworkModel, Parametrization
from scorefield.objectives import Denoising
from scorefield.records.result import Measurement
from scorefield.schedules import EDM
from scorefield.training.callbacks import Evaluator
from scorefield.training.datamodule import DataModule
from scorefield.training.ema import EMA, Exponential, HalfLife, Power
from scorefield.training.module import ScoreModule


class Affine(torch.nn.Module):
    """One weight per coordinate, and a buffer that counts and a buffer that drifts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x, label):
        if self.training:
            self.calls += 1
            self.last = x.mean(0).detach()
        return self.weight * x + label[:, None]


class Recorder(pl.Callback):
    """The raw weights after every optimiser step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append(pl_module.model.net.weight.detach().clone())


class Probe(Evaluator):
    """Notes what an evaluation is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, torch.Tensor, str]] = []

    def evaluate(self, occasion) -> dict[str, Measurement]:
        self.seen.append((occasion.step, occasion.model.net.weight.detach().clone(), occasion.weights))
        return {"probe": Measurement(0.0)}


def run(tmp_path, callbacks, steps=6, **options) -> tuple[pl.Trainer, ScoreModule, DataModule]:
    module = ScoreModule(
        NetworkModel(Affine(), EDM(), Parametrization.edm()), Denoising(), partial(torch.optim.SGD, lr=0.1)
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=callbacks,
        **options,
    )
    return trainer, module, DataModule(Mixture.ring(), 8)


def average(weights: list[torch.Tensor], decays: list[float], initial: torch.Tensor) -> torch.Tensor:
    """sum_i w_i (1 - b_i) prod_{j > i} b_j, term by term in float64."""
    shares = [(1 - b) * np.prod(decays[i + 1 :]) for i, b in enumerate(decays)]
    terms = [s * w.double() for s, w in zip(shares, weights, strict=True)]
    return sum(terms, float(np.prod(decays)) * initial.double())


INITIAL = torch.tensor([0.3, -0.2])
PROFILES = [Exponential(0.7), Exponential(0.7, warm_up=False), Exponential(0.0), Power(2.0), HalfLife(1.5, 0.5)]


def test_a_half_life_is_a_share_of_the_training_so_far():
    """EDM's rule, in images as its code has it: batches of 512, half a million images, a twentieth of the run."""
    profile = HalfLife(500_000 / 512, 0.05)
    for update in (1, 2, 20, 5000, 19_532, 19_533, 400_000):
        images = 512 * (update - 1)  # before this update's
        half_life = min(500_000, 0.05 * images)
        assert profile.decay(update) == pytest.approx(0.5 ** (512 / max(half_life, 1e-8)), rel=1e-12)
    assert profile.decay(1) == 0.0
    with pytest.raises(ValueError, match=r"half_life=0 and ramp=0\.05 must be positive"):
        HalfLife(0)


def test_without_warm_up_the_rate_is_there_from_the_start():
    assert [Exponential(0.999, warm_up=False).decay(n) for n in (1, 10)] == [0.999, 0.999]


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
@pytest.mark.parametrize("accumulated", [1, 3])
def test_average_is_over_optimiser_steps(tmp_path, profile, accumulated):
    ema, recorder = EMA(profile), Recorder()
    trainer, module, data = run(tmp_path, [recorder, ema], accumulate_grad_batches=accumulated, limit_val_batches=0)
    trainer.fit(module, data)
    assert ema.updates == len(recorder.weights) == 6
    expected = average(recorder.weights, [profile.decay(n) for n in range(1, 7)], INITIAL)
    # six float32 roundings of numbers of order one
    torch.testing.assert_close(ema.model.net.weight.double(), expected, atol=1e-6, rtol=0)


def test_buffers_are_copied(tmp_path):
    ema = EMA(Power(2.0))
    trainer, module, data = run(tmp_path, [ema], limit_val_batches=0)
    trainer.fit(module, data)
    assert int(ema.model.net.calls) == int(module.model.net.calls) == 6
    assert torch.equal(ema.model.net.last, module.model.net.last)


@pytest.mark.parametrize("order", [1, -1], ids=["EMA first", "EMA last"])
def test_every_evaluator_sees_the_average_whatever_the_order(tmp_path, order):
    recorder, probe, ema = Recorder(), Probe(), EMA(Exponential(0.9))
    trainer, module, data = run(tmp_path, [ema, recorder, probe][::order])
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert [(step, name) for step, _, name in probe.seen] == [(2, "ema"), (4, "ema"), (6, "ema"), (6, "ema")]
    for step, seen, _ in probe.seen:
        expected = average(recorder.weights[:step], [Exponential(0.9).decay(n) for n in range(1, step + 1)], INITIAL)
        torch.testing.assert_close(seen.double(), expected, atol=1e-6, rtol=0)
        assert not torch.allclose(seen, recorder.weights[step - 1], atol=1e-4)
    assert torch.equal(module.model.net.weight, recorder.weights[-1])
    assert probe.metrics["probe"].protocol["weights"] == "ema"


def test_before_the_first_update_the_raw_weights_are_evaluated_under_their_name(tmp_path):
    probe = Probe()
    trainer, module, data = run(tmp_path, [EMA(Power(2.0)), probe])
    trainer.validate(module, data, verbose=False)
    assert [(step, name) for step, _, name in probe.seen] == [(0, "raw")]


def test_without_an_average_the_record_says_raw(tmp_path):
    probe = Probe()
    trainer, module, data = run(tmp_path, [probe], steps=2)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert {name for _, _, name in probe.seen} == {"raw"}
    assert probe.metrics["probe"].protocol["weights"] == "raw"


def test_an_evaluation_leaves_the_mode_of_the_layers_as_it_was(tmp_path):
    class Modes(Probe):
        def evaluate(self, occasion):
            self.mode = occasion.model.training
            return super().evaluate(occasion)

    probe = Modes()
    trainer, module, data = run(tmp_path, [probe])
    trainer.fit(module, data)
    assert not probe.mode
    assert int(module.model.net.calls) == 6  # counted in training mode only


@pytest.mark.parametrize("order", [1, -1])
def test_an_exception_inside_a_validation_leaves_a_right_checkpoint(tmp_path, order):
    class Accident(Probe):
        def evaluate(self, occasion):
            raise ZeroDivisionError

    class Rescue(pl.Callback):
        def on_exception(self, trainer, *_) -> None:
            trainer.save_checkpoint(tmp_path / "rescued.ckpt")

    recorder, ema = Recorder(), EMA(Exponential(0.9))
    trainer, module, data = run(tmp_path, [*[ema, recorder, Accident()][::order], Rescue()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, data)
    saved = torch.load(tmp_path / "rescued.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["model.net.weight"], recorder.weights[1])
    expected = average(recorder.weights, [Exponential(0.9).decay(n) for n in (1, 2)], INITIAL)
    torch.testing.assert_close(saved["ema"]["state_dict"]["net.weight"].double(), expected, atol=1e-6, rtol=0)
    assert saved["ema"]["updates"] == 2
    assert torch.equal(module.model.net.weight, recorder.weights[-1])


@pytest.mark.parametrize(("precision", "kept"), [("bf16-true", torch.float32), ("64-true", torch.float64)])
def test_precision_of_the_weights_does_not_stall_the_average(tmp_path, precision, kept):
    """Steps of bfloat16 are 2^-8; an average kept in it would never move at a decay of 0.999."""
    recorder, ema = Recorder(), EMA(Exponential(0.999))
    trainer, module, data = run(tmp_path, [ema, recorder], precision=precision, limit_val_batches=0)
    trainer.fit(module, data)
    expected = average(recorder.weights, [Exponential(0.999).decay(n) for n in range(1, 7)], INITIAL)
    assert ema.model.net.weight.dtype == kept
    torch.testing.assert_close(ema.model.net.weight.double(), expected, atol=1e-6, rtol=0)


def test_exponential_profile_agrees_with_recorded_numbers(recorded):
    shadows = recorded("losses_score_sde")["ema/shadow_after_k_updates"].double()
    profile, shadow = Exponential(0.999), 0.0
    for n, expected in enumerate(shadows.tolist(), start=1):
        shadow = torch.lerp(torch.tensor(shadow), torch.tensor(float(n)), 1 - profile.decay(n)).item()
        # recorded from float32 additions of numbers up to 30
        assert shadow == pytest.approx(expected, rel=1e-6)


def test_exponential_profile_reaches_its_rate():
    profile = Exponential(0.999)
    assert profile.decay(8989) < 0.999  # (1 + n) / (10 + n) = 0.999 at n = 8990
    assert profile.decay(8991) == profile.decay(10**6) == 0.999


@pytest.mark.parametrize("gamma", [1.0, 6.94, 16.97])
def test_power_profile_has_the_stated_width(gamma):
    """The weights of step tau fall as tau^gamma (Karras et al. 2024, eq. 2), a Beta(gamma + 1, 1) law of tau / n."""
    n = 20_000
    decays = np.array([Power(gamma).decay(i) for i in range(1, n + 1)])
    shares = (1 - decays) * np.append(np.cumprod(decays[::-1])[::-1][1:], 1.0)
    tau = np.arange(1, n + 1) / n
    mean = (shares * tau).sum()
    deviation = np.sqrt((shares * (tau - mean) ** 2).sum())
    a = gamma + 1
    # the sum over steps differs from the integral by O(1 / n)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx(a / (a + 1), rel=(gamma + 2) / n)
    assert deviation == pytest.approx(np.sqrt(a / ((a + 1) ** 2 * (a + 2))), rel=(gamma + 2) / n)


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5])
def test_rate_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match=f"rate={bad}"):
        Exponential(bad)


def test_sharded_models_are_refused(tmp_path):
    class Sharded(pl.strategies.FSDPStrategy):
        def __init__(self) -> None:
            pass

    class FakeTrainer:
        strategy = Sharded()

    with pytest.raises(ValueError, match="use ddp"):
        EMA(Power()).setup(FakeTrainer(), None, "fit")
