"""Runs whose images are augmented: what a step sees, what the network is told, and that nothing else is touched."""

from types import SimpleNamespace

import pytest
import torch

from scorefield.augmentation import Augmentation
from scorefield.cli.runs import build
from scorefield.data import Digits, Mixture
from scorefield.noise import StreamNoise
from scorefield.training.callbacks.evaluator import Occasion
from scorefield.training.datamodule import DataModule, TrainingStream
from tests.training.test_resume import interrupted_is_uninterrupted
from tests.training.tiny import DIGITS, checkpoint, compose_config, differences, fit

SONGUNET = [
    "net=songunet_ddpmpp",
    "net.channels=8",
    "net.multipliers=[1,2]",
    "net.blocks=1",
    "net.attention=[]",
    "net.features.dim=8",
]
AUGMENTED = [*(o for o in DIGITS if not o.startswith("net.")), *SONGUNET, "augmentation=edm", "augmentation.p=0.5"]


@pytest.fixture(autouse=True)
def _float32(_float64):
    torch.set_default_dtype(torch.float32)


def augmented(run_dir, *overrides):
    return compose_config(*AUGMENTED, f"run_dir={run_dir}", *overrides)


def stream(augmentation=None, seed=3, rank=0, start=0):
    data = Digits()
    return TrainingStream(data, data.train(), 16, seed, rank, 2, start, augmentation=augmentation)


def test_a_batch_is_the_augmented_one_and_says_how():
    """By the stream of its seed, process and number; which images, and how they are dequantised, stays as it was."""
    pipe = Augmentation(p=0.5)
    plain, batch = stream().batch(5), stream(pipe).batch(5)
    x, labels = pipe(plain["x"], StreamNoise(3, "augment", 0, 5))
    assert differences(batch, {**plain, "x": x, "augment_labels": labels}) == []
    assert not torch.equal(x, plain["x"])
    assert "augment_labels" not in plain
    assert differences(next(iter(stream(pipe, start=5))), batch) == []
    for other in (stream(pipe, seed=4), stream(pipe, rank=1)):
        assert not torch.equal(other.batch(5)["augment_labels"], labels)
    assert not torch.equal(stream(pipe).batch(6)["augment_labels"], labels)


def test_the_network_is_told_in_training_and_not_asked_so_otherwise(tmp_path):
    told = []
    parts = build(augmented(tmp_path, "data.conditional=true", "net.classes=10"))
    module, data = parts.module, parts.data
    module.model.net.conditioning.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1:]))
    batch = TrainingStream(data.data, data.train_split, 16, 0, augmentation=data.augmentation).batch(0)
    module.loss(module.model, batch, StreamNoise(0))
    assert torch.equal(told[0][0], batch["label"])
    assert torch.equal(told[0][1], batch["augment_labels"])
    occasion = Occasion(
        SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))), module, None, "ema", data, True
    )
    assert set(occasion.wanted([0, 1])) == {"label"}
    # Nothing is told about images as they are: no labels are zero labels.
    x, t = batch["x"], torch.full((16,), 0.5)
    for parameter in module.parameters():  # a fresh network answers 0 to everything
        parameter.data.normal_(std=0.1)
    module.model.eval()
    none = module.model(x, t, {"label": batch["label"]}).out
    zero = {"label": batch["label"], "augment_labels": torch.zeros(16, 9)}
    assert torch.equal(module.model(x, t, zero).out, none)
    some = {"label": batch["label"], "augment_labels": batch["augment_labels"]}
    assert not torch.allclose(module.model(x, t, some).out, none)


def test_a_network_without_classes_is_told_too(tmp_path):
    parts = build(augmented(tmp_path))
    told = []
    parts.module.model.net.conditioning.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1:]))
    batch = {"x": torch.zeros(3, 1, 8, 8), "augment_labels": torch.ones(3, 9)}
    parts.module.loss(parts.module.model, batch, StreamNoise(0))
    assert told[0][0] is None
    assert torch.equal(told[0][1], torch.ones(3, 9))


def test_augmentations_survive_a_resumption(tmp_path):
    overrides = ["callbacks.checkpoint.every=3"]
    interrupted_is_uninterrupted(lambda path: augmented(path, *overrides), tmp_path)
    # Other augmentations make another run: the comparison can fail.
    fit(augmented(tmp_path / "other", *overrides, "augmentation.p=0.4"))
    assert differences(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "other")["state_dict"])


@pytest.mark.parametrize(
    ("data", "flip", "message"),
    [
        (Mixture.ring(), False, r"augmentation moves images, but examples of .* have shape \[2\]"),
        (Digits(), True, r"flip=True mirrors images untold"),
    ],
)
def test_what_cannot_be_augmented_or_told_is_refused(data, flip, message):
    with pytest.raises(ValueError, match=message):
        DataModule(data, 8, flip=flip, augmentation=Augmentation())
