"""The presets train and sample with the settings that were transcribed from their papers."""

import pytest
import yaml

from scorefield.augmentation import Augmentation
from tests.conftest import SHARED
from tests.training.tiny import compose_config

PIXELS = 3 * 32 * 32
SCORE_SDE = [
    *(f"ddpm_cifar10_{sde}" for sde in ("vp", "subvp")),
    *(f"{net}_cifar10_{sde}" for net in ("ddpmpp", "ddpmpp_deep") for sde in ("vp", "subvp")),
    *(f"{net}_cifar10_{sde}" for net in ("ncsnpp", "ncsnpp_deep") for sde in ("ve", "vp", "subvp")),
]
EDM = ["edm_cifar10_vp", "edm_cifar10_vp_cond", "edm_cifar10_ve", "edm_cifar10_ve_cond"]


def settings(paper):
    path = SHARED / "papers" / f"{paper}.yaml"
    if not path.is_file():
        pytest.skip("the transcriptions of the papers' settings are not on this machine")
    return yaml.safe_load(path.read_text())["settings"]


def preset(name):
    return compose_config(f"experiment={name}", "run_dir=unused")


@pytest.mark.parametrize("name", SCORE_SDE)
def test_score_sde(name):
    paper, config = settings("score_sde"), preset(name)
    sde = name.rsplit("_", 1)[1]
    kind = "ve" if sde == "ve" else "vp_subvp"
    assert config["steps"] == paper["iterations"]["deep" if "_deep_" in name else "default"]
    assert config["data"]["batch_size"] == paper["batch_size"]["default"]
    assert config["ema"]["profile"]["rate"] == paper["ema"][kind]
    optim = config["optim"]
    assert optim["optimizer"]["lr"] == paper["optimizer"]["lr"]
    assert optim["lr_schedule"]["total_iters"] == paper["optimizer"]["warmup"]
    # A mean over pixels stands here: where the paper has half the sum, gradients are smaller by so much.
    factor = PIXELS / 2 if sde == "ve" else 1
    assert paper["loss"] == {"ve": "0.5 * sum over dimensions", "vp": "mean over dimensions"}
    assert config["trainer"]["gradient_clip_val"] * factor == pytest.approx(paper["optimizer"]["grad_clip"], rel=1e-3)
    assert optim["optimizer"].get("eps", 1e-8) * factor == pytest.approx(1e-8, rel=1e-3)
    last = config["sampler"]["grid"].get("t_min") or 1e-5
    assert last == paper["time_eps"]["sampling_ve" if sde == "ve" else "sampling_vp"]
    assert config["sampler"]["steps"] == paper["sde"]["N"]
    assert config["sampler"]["denoise_last"] == paper["denoise_final"]
    assert config["schedule"].get("t_min", 1e-5) == paper["time_eps"]["training"]


def test_ddpm():
    paper, config = settings("ddpm"), preset("ddpm_cifar10")
    assert paper["variance"] == "fixedlarge"
    assert config["sampler"]["predictor"]["forward_variance"]
    assert config["data"]["flip"] == paper["flip"]
    assert config["steps"] == paper["iterations"]
    assert config["ema"]["profile"]["rate"] == paper["ema"]
    assert config["trainer"]["gradient_clip_val"] == paper["optimizer"]["grad_clip"]
    assert config["optim"]["optimizer"]["lr"] == paper["optimizer"]["lr"]
    assert config["optim"]["lr_schedule"]["total_iters"] == paper["optimizer"]["warmup"]


@pytest.mark.parametrize("name", EDM)
def test_edm(name):
    paper, config = settings("edm")["training_cifar10"], preset(name)
    batch = config["data"]["batch_size"]
    assert batch == paper["batch_size"]
    assert config["steps"] == 1e6 * paper["duration_mimg"] / batch
    assert config["data"]["flip"] == paper["xflip"]
    assert config["augmentation"]["p"] == paper["augment"]
    assert config["net"]["augmentations"] == Augmentation.labels
    assert config["trainer"]["gradient_clip_val"] == paper["grad_clip"]
    assert config["optim"]["optimizer"]["lr"] == paper["lr"]
    assert config["optim"]["lr_schedule"]["total_iters"] == pytest.approx(1e6 * paper["lr_rampup_mimg"] / batch, abs=1)
    assert config["ema"]["profile"]["half_life"] * batch == 1e6 * paper["ema_halflife_mimg"]
    assert config["ema"]["profile"]["ramp"] == paper["ema_rampup"]
    assert config["net"]["dropout"] == paper["dropout"]


def test_ncsn():
    paper, config = settings("ncsn")["cifar10"], preset("ncsn_cifar10")
    assert paper["ema"] is None
    assert not config["ema"]
    assert (config["steps"], config["data"]["batch_size"]) == (paper["iterations"], paper["batch_size"])
    assert config["optim"]["optimizer"]["lr"] == paper["optimizer"]["lr"]
    assert config["sampler"]["corrections"] == paper["sampler"]["T"]
    assert config["sampler"]["denoise_last"] == paper["sampler"]["denoise_final"]


def test_ncsnv2():
    paper, config = settings("ncsnv2"), preset("ncsnv2_cifar10")
    assert config["ema"]["profile"]["rate"] == paper["ema"]
    assert config["optim"]["optimizer"]["lr"] == paper["optimizer"]["lr"]
