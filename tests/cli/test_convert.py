"""A published checkpoint becomes a run that is sampled from and evaluated like any other."""

import json

import numpy as np
import pytest
import torch
import yaml

from scorefield.checkpoints import load
from scorefield.cli import convert, evaluate, sample
from scorefield.cli.runs import load_run
from scorefield.errors import BadFileError, UserError
from scorefield.records.rundir import RunDir
from tests.checkpoints.published import CONFIGS, checkpoint, drawn
from tests.training.tiny import compose_config


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def files(tmp_path):
    """The authors' checkpoints and configurations, and images to evaluate on."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(30) % 4)
    for source, config in CONFIGS.items():
        raw, ema = drawn(source, config, 0), drawn(source, config, 1)
        if source == "score_sde":
            ema["all_modules.0.W"] = raw["all_modules.0.W"]
        torch.save(checkpoint(source, raw, ema), tmp_path / f"{source}.pth")
        (tmp_path / f"{source}.json").write_text(json.dumps({"config": config} if source == "ncsn" else config))
    return tmp_path


def asked(files, source, *more):
    overrides = [
        f"source={source}",
        f"checkpoint={files / source}.pth",
        f"authors={files / source}.json",
        f"run_dir={files / 'run'}",
        "data=array",
        "data.shape=[3,8,8]",
        f"data.dataset.path={files / 'images.npz'}",
        "data.dataset.held_out=5",
        "data.dataset.tested=5",
        "data.batch_size=5",
        "callbacks.quality=null",
        "sampler.steps=3",
        "callbacks.samples.n=4",
        "callbacks.loss_by_noise.n=4",
        "callbacks.loss_by_noise.levels=3",
        "likelihood.solver.rtol=1",
        "likelihood.solver.atol=1",
        "callbacks.likelihood.n_final=2",
        *(["data.classes=4", "data.conditional=true"] if source == "edm" else []),
        *more,
    ]
    return compose_config(*overrides, name="convert")


def as_config(values):
    from omegaconf import OmegaConf

    return OmegaConf.create(values)


@pytest.mark.parametrize("source", CONFIGS)
def test_a_run_has_the_models_weights_schedule_and_transform(files, source):
    convert.main(as_config(asked(files, source)))
    for weights in ("ema", "raw"):
        model = load(source, files / f"{source}.pth", CONFIGS[source], weights)
        run = load_run(files / "run", weights)
        x, t = torch.rand(2, 3, 8, 8), model.schedule.time_at(torch.tensor([0.3, 0.8], dtype=torch.float64))
        assert torch.equal(run(x, t).score, model(x, t).score)
        assert repr(run.schedule) == repr(model.schedule)
    stored = yaml.safe_load((files / "run" / "config.yaml").read_text())
    assert stored["data"]["dataset"]["transform"]["scale"] == model.transform.scale


def test_sample_and_evaluate_take_the_run(files, capsys):
    convert.main(as_config(asked(files, "edm")))
    run = RunDir(files / "run")
    settings = [f"run_dir={run.path}", "n=4", "batch_size=4"]
    sample.main(as_config(compose_config(*settings, "label=2", name="sample")))
    drawn_folder = next((run.path / "drawn").iterdir())
    assert np.load(drawn_folder / "samples.npz")["samples"].shape == (4, 3, 8, 8)
    evaluate.main(as_config(compose_config(f"run_dir={run.path}", name="evaluate")))
    folder = next((run.path / "evaluations").iterdir())
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert np.isfinite(metrics["bits_per_dim"]["value"])
    assert metrics["bits_per_dim"]["weights"] == "ema"


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(files):
    with pytest.raises(BadFileError, match=r"use source 'score_sde'|looks like one of source 'score_sde'"):
        convert.main(as_config(asked(files, "ncsnv2", f"checkpoint={files / 'score_sde'}.pth")))
    with pytest.raises(UserError, match=r"config.model.name is missing"):
        convert.main(as_config(asked(files, "score_sde", f"authors={files / 'ncsnv2'}.json")))
    with pytest.raises(UserError, match="cannot be run"):
        convert.main(as_config(asked(files, "score_sde", "data.shape=[3,8,9]", "data.dataset.shape=[3,8,8]")))
    assert not (files / "run").exists()
    convert.main(as_config(asked(files, "score_sde")))
    with pytest.raises(UserError, match="holds a run already"):
        convert.main(as_config(asked(files, "score_sde")))
