"""Class-conditional runs: labels left out, classifiers, and how samples are judged by class."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from scorefield.cli.evaluate import evaluation_config
from scorefield.cli.runs import build, newest_checkpoint
from scorefield.metrics.features import DigitFeatures
from scorefield.models import Classifier, ClassifierGuided, Guided, Parametrization
from scorefield.models.parametrization import LogRatio, UnitVariance
from scorefield.nets import ClassifierConv, ClassifierMLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import CrossEntropy
from scorefield.records.rundir import RunDir
from scorefield.schedules import EDM, VP
from scorefield.times import Uniform
from scorefield.training.callbacks.evaluator import Occasion
from scorefield.training.callbacks.samples import draw
from scorefield.training.module import ScoreModule
from tests.conftest import inside
from tests.training.test_resume import interrupted_is_uninterrupted
from tests.training.tiny import checkpoint, classifier, compose_config, differences, digits, fit

TOLD = ["data.conditional=true", "data.label_dropout=0.5", "++net.classes=10"]


@pytest.fixture(autouse=True)
def _float32(_float64):
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps on the digits with their classes."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("run")
    fit(digits(path, *TOLD))
    return path


def test_left_out_labels_survive_a_resumption(tmp_path):
    overrides = [*TOLD, "callbacks.checkpoint.every=3"]
    interrupted_is_uninterrupted(lambda path: digits(path, *overrides), tmp_path)
    # Leaving out other labels makes another run: the comparison can fail.
    fit(digits(tmp_path / "other", *overrides, "data.label_dropout=0.4"))
    assert differences(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "other")["state_dict"])


def test_labels_are_left_out_of_training_and_of_nothing_else(tmp_path):
    """Half of the labels of a step are -1, others at each step; evaluation and sampling see all of them."""
    seen = []
    parts = build(digits(tmp_path, *TOLD))
    module = parts.module
    embedding = module.model.net.conditioning.class_embedding
    embedding.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].clone()))
    batch = {"x": torch.randn(64, 1, 8, 8), "label": torch.arange(64) % 10}
    for step in range(2):
        module.loss(module.model, batch, StreamNoise(0, "objective", step))
    first, second = seen
    kept = first != -1
    assert abs(float(kept.double().mean()) - 0.5) < 4 * (0.25 / 64) ** 0.5
    assert torch.equal(first[kept], batch["label"][kept])
    assert not torch.equal(first, second)
    module.loss(module.model, batch, StreamNoise(0, "objective", 0))  # the step's own stream decides, and it alone
    assert torch.equal(seen[2], first)
    assert torch.equal(module.conditions(batch)["label"], batch["label"])


def test_dropout_without_labels_is_refused():
    for rate, conditional in ((0.1, False), (1.0, True), (-0.1, True)):
        with pytest.raises(ValueError, match=rf"label_dropout={rate}"):
            ScoreModule(torch.nn.Identity(), torch.nn.Identity(), None, conditional=conditional, label_dropout=rate)


def measured(run, *overrides):
    parts = build(digits(run.parent / "again", *TOLD, *overrides))
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest_checkpoint(RunDir(run)), verbose=False)
    found = {n: m.record() for c in parts.trainer.callbacks for n, m in getattr(c, "metrics", {}).items()}
    return found, parts


def test_agreement_is_that_of_the_samples_it_says(run):
    """The recorded numbers, from samples drawn one at a time under the same guidance and judged one at a time."""
    few = ["callbacks.quality.n_final=40", "callbacks.likelihood=null"]
    found, parts = measured(run, "guidance=cfg", "guidance.scale=2.0", *few, "callbacks.quality.batch_size=7")
    record = found["class_agreement_digits"]
    assert record["guidance"] == found["fd_digits"]["guidance"] == "Guided(scale=2.0)"
    assert (record["n"], record["weights"], record["step"]) == (40, "ema", 8)
    model = parts.module.model
    model.load_state_dict(checkpoint(run)["ema"]["state_dict"])
    guided, extractor, right = Guided(model.eval(), 2.0), DigitFeatures(), torch.zeros(10)
    quality = next(c for c in parts.trainer.callbacks if type(c).__name__ == "SampleQuality")
    for i in range(40):
        x, _ = draw(guided, quality.sampler, (1, 8, 8), [i], 0, torch.device("cpu"), {"label": torch.tensor([i % 10])})
        logits = extractor.logits(extractor(parts.data.data.from_model(x)))
        right[i % 10] += float(logits.argmax() == i % 10) / 4
    assert record["by_class"] == pytest.approx(right.tolist())
    assert record["value"] == pytest.approx(float(right.mean()))
    assert len(record["kid_by_class"]) == 10
    # Without guidance other samples are judged, and the record does not speak of any.
    free, _ = measured(run, *few)
    assert "guidance" not in free["class_agreement_digits"]
    assert free["fd_digits"]["value"] != found["fd_digits"]["value"]


def test_evaluation_takes_another_guidance(run):
    asked = compose_config("run_dir=x", "guidance=cfg_interval", "trainer=cpu", name="evaluate")
    plain = compose_config("run_dir=x", "trainer=cpu", name="evaluate")
    config = digits(run, *TOLD, "guidance=cfg")
    for callback in ("samples", "quality"):
        changed = evaluation_config(config, asked)["callbacks"][callback]["guidance"]
        assert (changed["scale"], changed["low"]) == (2.0, 0.3)
        assert evaluation_config(config, plain)["callbacks"][callback]["guidance"]["scale"] == 1.25
    # Runs from before there was guidance take one too; callbacks that sample nothing do not.
    old = digits(run, *TOLD)
    del old["callbacks"]["quality"]["guidance"], old["guidance"]
    adapted = evaluation_config(old, asked)
    assert adapted["callbacks"]["quality"]["guidance"]["low"] == 0.3
    assert "guidance" not in adapted["callbacks"]["likelihood"]


def test_a_steered_model_is_asked_for_classes_though_it_knows_none():
    """By a classifier; nothing else tells an unconditional model anything."""
    data = SimpleNamespace(data=SimpleNamespace(classes=3))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    for conditional in (False, True):
        occasion = Occasion(trainer, SimpleNamespace(conditional=conditional), None, "ema", data, final=True)
        assert occasion.wanted([0, 4, 5], partial(ClassifierGuided, classifier=None))["label"].tolist() == [0, 1, 2]
        for guidance in (None, partial(Guided)):
            assert (occasion.wanted([0], guidance) is not None) == conditional


def test_a_classifier_trains_to_the_posterior_of_two_gaussians():
    """Against Bayes' rule, at every noise level; its score is the gradient of the log-probability."""
    torch.manual_seed(0)
    schedule = EDM(0.1, 3.0)
    parametrization = Parametrization(input_scale=UnitVariance(1.0), label=LogRatio())
    model = Classifier(ClassifierMLP((2,), 32, 1, Fourier(8, 0.3), 2), schedule, parametrization)
    objective, noise = CrossEntropy(Uniform()), StreamNoise(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    mean = torch.tensor([1.0, -0.5])
    for _ in range(300):
        label = torch.randint(2, (256,))
        x = (2 * label[:, None] - 1) * mean + 0.5 * torch.randn(256, 2)
        loss = objective(model, x, {"label": label}, noise)
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
        decay.step()
    x, t = 1.5 * torch.randn(200, 2), 0.2 + 2.5 * torch.rand(200)
    exact = 2 * (x @ mean) / (0.25 + t.square())  # log odds of class 1
    ours = model.logits(x, t).diff(dim=1)[:, 0]
    # 300 steps leave a few hundredths of a probability; without the noise label the error is a tenth and more.
    assert float((ours.sigmoid() - exact.sigmoid()).abs().mean()) < 0.03
    ones = {"label": torch.ones(200, dtype=torch.long)}
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.logits(at, t).log_softmax(1)[:, 1].sum(), at)
    assert torch.allclose(model(x, t, ones).score, slope, atol=1e-5)
    assert torch.allclose(model.energy(x, t, ones), -model.logits(x, t).log_softmax(1)[:, 1], atol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_classifier_has_a_score_in_every_gradient_mode(context):
    net = ClassifierConv((1, 8, 8), 8, (1, 2), 1, Fourier(8), 3)
    model = Classifier(net, VP(), Parametrization()).eval()
    x, t, cond = torch.randn(3, 1, 8, 8), inside(VP(), 3), {"label": torch.tensor([0, 1, 2])}
    with context():
        score = model(x.clone(), t.clone(), {"label": cond["label"].clone()}).score
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], {"label": cond["label"][i : i + 1]}).score for i in range(3)])
    assert torch.allclose(score, alone.detach(), atol=1e-6)


def test_what_is_no_classifier_is_refused(run):
    parts = build(digits(run.parent / "other", *TOLD))
    with pytest.raises(TypeError, match="CrossEntropy trains a Classifier, not a NetworkModel"):
        CrossEntropy()(parts.module.model, torch.zeros(1, 1, 8, 8), {"label": torch.zeros(1).long()}, StreamNoise(0))
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        ClassifierMLP((2,), 4, 1, Fourier(4), 1)
    model = Classifier(parts.module.model.net, VP(), Parametrization())
    with pytest.raises(ValueError, match="returns logits"):
        model.logits(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5))


def test_accuracy_by_level_is_counted_from_single_examples(tmp_path):
    config = classifier(tmp_path)
    parts = fit(config)
    parts.trainer.test(parts.module, parts.data, verbose=False)
    (found,) = [m.record() for c in parts.trainer.callbacks for m in getattr(c, "metrics", {}).values()]
    again = build(classifier(tmp_path, "callbacks.accuracy.batch_size=1"))
    newest = newest_checkpoint(RunDir(tmp_path))
    again.trainer.test(again.module, again.data, ckpt_path=newest, weights_only=True, verbose=False)
    (single,) = [m.record() for c in again.trainer.callbacks for m in getattr(c, "metrics", {}).values()]
    assert found["by_level"] == pytest.approx(single["by_level"], abs=1.01 / 41)  # a tie may fall the other way
    assert (found["n"], found["split"], found["levels"]) == (41, "test", 3)
    assert RunDir(tmp_path).figure("class_accuracy").is_file()
    # At the largest noise nothing can be told apart: chance, within four standard errors.
    assert abs(found["by_level"][-1] - 0.1) < 4 * (0.09 / 41) ** 0.5 + 0.1
