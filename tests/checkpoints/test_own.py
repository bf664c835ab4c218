"""Models of every kind, written as two files and read back in one call."""

import json

import pytest
import torch
from torch import nn

from scorefield.checkpoints import export, load
from scorefield.errors import BadFileError
from scorefield.models import (
    ChainIndex,
    Fixed,
    LadderIndex,
    Log,
    MixtureModel,
    NetworkModel,
    Parametrization,
    Sigma,
    VPTime,
)
from scorefield.nets import MLP, Fourier, Sinusoidal, UNet
from scorefield.prediction import Data, Karras, Noise, ScaledScore, Score, Velocity
from scorefield.recipe import build, recipe
from scorefield.schedules import EDM, VE, VP, Constant, Linear, SubVP, Tabulated
from tests.conftest import MIXTURE
from tests.nets.test_published_networks import awake

SCHEDULES = [
    VE(0.02, 30.0, t_min=0.0),
    VP(0.2, 10.0),
    SubVP(),
    Linear(1e-3, 0.99),
    EDM(0.01, 5.0),
    Constant(0.3),
    Tabulated.linear(50, 1e-3, 0.1),
]
PARAMETRIZATIONS = [
    Parametrization.edm(0.7),
    Parametrization(Noise()),
    Parametrization(ScaledScore(), Fixed(2.0), Log(Sigma(0.5)), -1.0),
    Parametrization(Score(), label=LadderIndex(10)),
    Parametrization(Velocity(), label=ChainIndex(50)),
    Parametrization(Data(), label=VPTime(0.1, 15.0, 9.0)),
    Parametrization(Karras(0.3)),
]
NETS = [
    lambda: UNet((1, 8, 8), 4, (1, 2), 1, Fourier(4), attention=(1,), head_channels=4, classes=3),
    lambda: MLP((1, 8, 8), 8, 2, Sinusoidal(4), classes=3),
]


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize(
    ("schedule", "parametrization"), list(zip(SCHEDULES, PARAMETRIZATIONS, strict=True)), ids=lambda v: type(v).__name__
)
def test_a_network_model_is_the_same_function_afterwards(tmp_path, make, schedule, parametrization):
    model = NetworkModel(awake(make()), schedule, parametrization)
    again = load("scorefield", export(model, tmp_path / "model"))
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.4, 0.6, 0.9])
    cond = {"label": torch.tensor([0, -1, 2])}
    assert torch.equal(again(x, t, cond).out, model(x, t, cond).out)
    assert again.parametrization == parametrization
    assert repr(again.schedule) == repr(schedule)
    assert torch.equal(again.schedule.sigma(t), schedule.sigma(t))


def test_a_mixture_is_a_model_too(tmp_path):
    model = MixtureModel(VP(), **MIXTURE)
    again = load("scorefield", export(model, tmp_path / "model"))
    x, t = torch.randn(3, 2), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(again(x, t).score, model(x, t).score)


def test_precision_is_kept(tmp_path):
    model = NetworkModel(awake(NETS[0]()).to(torch.float16), VP(), Parametrization(Noise()))
    assert load("scorefield", export(model, tmp_path / "model")).dtype == torch.float16


class Unheard(nn.Module):
    """A network that does not say how it was made."""


def test_what_does_not_say_how_it_was_made_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"Unheard does not say how it was made|cannot be written down"):
        export(NetworkModel(Unheard(), VP(), Parametrization()), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "scorefield.recipe.build",
        "scorefield.nets.unet.torch",
        "torch.nn",
    ],
)
def test_a_recipe_calls_nothing_but_parts_of_models(tmp_path, target):
    for node in ({"_target_": target}, {"_target_": "scorefield.models.LadderIndex", "levels": {"_target_": target}}):
        with pytest.raises(ValueError, match=r"may name classes of|is not known here"):
            build(node)
    folder = export(NetworkModel(NETS[0](), VP(), Parametrization()), tmp_path / "model")
    described = json.loads((folder / "model.json").read_text())
    described["model"]["schedule"] = {"_target_": target, "command": "true"}
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(BadFileError, match=r"model.json"):
        load("scorefield", folder)


def test_a_folder_whose_files_do_not_belong_together_is_refused(tmp_path):
    one = export(NetworkModel(NETS[0](), VP(), Parametrization()), tmp_path / "one")
    two = export(NetworkModel(NETS[1](), VP(), Parametrization()), tmp_path / "two")
    (one / "weights.safetensors").write_bytes((two / "weights.safetensors").read_bytes())
    with pytest.raises(BadFileError, match="holds another model than"):
        load("scorefield", one)
    (two / "model.json").write_text("{")
    with pytest.raises(BadFileError, match="expected JSON"):
        load("scorefield", two)


def test_a_recipe_is_plain(tmp_path):
    """JSON and back changes nothing that `build` reads."""
    node = recipe(NetworkModel(NETS[0](), VE(), Parametrization(ScaledScore(), Fixed(2.0), Log(Sigma()), -1.0)))
    assert json.loads(json.dumps(node)) == node
    assert recipe(build(node)) == node
