"""Every recorded network: output, score and input gradient of the reference implementations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scorefield.checkpoints import from_state, load
from tests.conftest import SHARED

FOLDER = SHARED / "parity" / "networks"
SOURCES = {
    "ermongroup/ncsn": "ncsn",
    "ermongroup/ncsnv2": "ncsnv2",
    "yang-song/score_sde_pytorch": "score_sde",
    "NVlabs/edm": "edm",
}
NETWORKS = sorted(path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith("ckpt_"))
CHECKPOINTS = sorted(path.stem for path in FOLDER.glob("ckpt_*.json"))

if not FOLDER.is_dir():
    pytest.skip(f"reference numbers are not at {FOLDER}", allow_module_level=True)


@pytest.fixture(autouse=True)
def _float32():
    """The recorded networks ran in float32."""
    torch.set_default_dtype(torch.float32)


class Network:
    """One recorded network."""

    def __init__(self, name: str) -> None:
        self.manifest: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        self.source = SOURCES[self.manifest["peer"]]
        self.config = self.manifest["config"]
        self.gap = self.manifest["float32_rounding"]["max_diff_over_rms"]
        self.state = {k.removeprefix("state/"): v for k, v in self.tensors.items() if k.startswith("state/")}

    def input(self) -> tuple[Tensor, Tensor]:
        if "net/x" in self.tensors:  # EDM's output is recorded inside of the preconditioning
            return self.tensors["net/x"], self.tensors["net/noise_labels"]
        return self.tensors["in/x"], self.tensors[self.manifest["input_convention"]["time_key"]]

    @property
    def labels(self) -> dict[str, Tensor | None]:
        return {key: self.tensors.get(f"in/{key}") for key in ("class_labels", "augment_labels")}


def furthest(found: Tensor, recorded: Tensor) -> float:
    """Largest difference, in units of the recorded numbers' root mean square: what the manifests call the gap."""
    return float((found - recorded).detach().abs().max() / recorded.square().mean().sqrt())


def distance(found: Tensor, recorded: Tensor) -> float:
    """Euclidean distance in units of the recorded numbers' length."""
    return float((found - recorded).detach().norm() / recorded.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_input_gradient(name):
    """Within five rounding gaps of the peer.

    The gap is the largest difference of an output between the peer in float32 and in float64. Gradients are compared by
    their Euclidean distance: where a sample's gradient is a thousand times another's, single entries of the peer's own
    float32 gradient lie ten gaps away from its float64 gradient (NCSNv2).
    """
    n = Network(name)
    net = from_state(n.source, n.state, n.config)
    x, t = n.input()
    x = x.clone().requires_grad_()
    out = net(x, t, **n.labels)
    assert furthest(out, n.tensors["out"]) <= 5 * n.gap
    if "vjp/x" in n.tensors:
        (gradient,) = torch.autograd.grad((out * n.tensors["vjp/probe"]).sum(), x)
        assert distance(gradient, n.tensors["vjp/x"]) <= 5 * n.gap


@pytest.mark.parametrize("name", [n for n in NETWORKS if "out_score" in Network(n).tensors])
def test_score(name, tmp_path):
    """The peer's score function at its own time, of a model made from a plain file."""
    n = Network(name)
    torch.save(n.state, tmp_path / "state.pt")
    model = load(n.source, tmp_path / "state.pt", n.config)
    score = model(n.tensors["in/x"], n.tensors["in/time"]).score
    # The label is computed from the time here and was recorded there: one more rounding, of phases of some hundred.
    assert furthest(score, n.tensors["out_score"]) <= 5 * n.gap


@pytest.mark.parametrize("name", [n for n in NETWORKS if "out_denoised" in Network(n).tensors])
def test_preconditioned_output_and_its_gradient(name, tmp_path):
    n = Network(name)
    torch.save(n.state, tmp_path / "state.pt")
    model = load(n.source, tmp_path / "state.pt", n.config)
    x, sigma = n.tensors["in/x"].clone().requires_grad_(), n.tensors["in/sigma"]
    plain = n.tensors.get("out_denoised_no_augment_labels", n.tensors["out_denoised"])
    assert furthest(model(x, sigma).data, plain) <= 5 * n.gap
    net = model.net
    model.net = torch.nn.Module()  # with the recorded labels of augmentation, which a model is not asked with
    model.net.weight = torch.nn.Parameter(torch.zeros(()))
    model.net.forward = lambda x, label: net(x, label, **n.labels)
    denoised = model(x, sigma).data
    assert furthest(denoised, n.tensors["out_denoised"]) <= 5 * n.gap
    (gradient,) = torch.autograd.grad((denoised * n.tensors["vjp/probe"]).sum(), x)
    assert distance(gradient, n.tensors["vjp/x_denoised"]) <= 5 * n.gap


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, weights):
    manifest = json.loads((FOLDER / f"{name}.json").read_text())
    expected = load_file(FOLDER / f"{name}.expected.safetensors")
    source, path = SOURCES[manifest["peer"]], FOLDER / f"{name}.pth"
    model = load(source, path, manifest["config"], weights)
    recorded = expected[f"out_{weights}_weights"]
    if weights == "raw" and holds_one_set(path):
        pytest.skip(f"{path.name} holds its averages a second time in the place of the raw weights")
    if "in/sigma" in expected:
        t = model.schedule.time_at(expected["in/sigma"].double())
    else:
        t = 1 - expected["in/t"].double() / (manifest["config"]["model"]["num_classes"] - 1)
    # 5e-5, the loosest gap of the recorded networks: these come without one.
    assert furthest(model(expected["in/x"], t).score, recorded) <= 5 * 5e-5


def holds_one_set(path: Path) -> bool:
    """Whether raw and averaged weights of a file are bitwise the same."""
    content = torch.load(path, weights_only=True)
    if isinstance(content, list):
        return all(torch.equal(content[0][f"module.{name}"], tensor) for name, tensor in content[4].items())
    trained = [
        v for k, v in content["model"].items() if not (k.endswith(".sigmas") or (k.endswith(".W") and v.ndim == 1))
    ]
    return all(map(torch.equal, trained, content["ema"]["shadow_params"]))
