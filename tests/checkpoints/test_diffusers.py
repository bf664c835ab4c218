"""Folders of diffusers, against the library itself where it is installed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from scorefield.checkpoints import load
from scorefield.errors import BadFileError
from scorefield.schedules import Tabulated
from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()  # the library imports torchvision
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed; `pip install diffusers` to compare")

KINDS = {
    "defaults": {},
    "ddpm": {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "layers_per_block": 2,
    },
    "heads": {"attention_head_dim": 4, "norm_num_groups": 8},
    "plain_middle": {"add_attention": False, "center_input_sample": True, "attention_head_dim": 16},
}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def folder_of(path, **options):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
    }
    peer = diffusers.UNet2DModel(sample_size=8, **{**blocks, **options}).eval()
    with torch.no_grad():
        for name, p in peer.named_parameters():  # norms and biases start at 1 and 0, which hides where they act
            p.add_(0.2 * torch.randn_like(p) if p.ndim == 1 or "norm" in name else 0)
    peer.save_pretrained(path)
    return peer


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_the_librarys_output_and_gradient(tmp_path, options):
    peer = folder_of(tmp_path, **options)
    model = load("diffusers", tmp_path)
    x, t = torch.randn(2, 3, 8, 16).requires_grad_(), torch.tensor([3, 800])
    expected = peer(x, t).sample
    time = (t.double() + 1) / 1000
    out = model(x, time).noise
    scale = expected.square().mean().sqrt()
    # Two float32 runs of some twenty layers with another order of sums.
    assert float((out - expected).detach().abs().max() / scale) < 5e-5
    probe = torch.randn_like(x)
    theirs, ours = (torch.autograd.grad((y * probe).sum(), x)[0] for y in (expected, out))
    assert float((theirs - ours).norm() / theirs.norm()) < 5e-5


def test_the_pipelines_noise_schedule_is_the_models(tmp_path):
    folder_of(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    settings = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.05, "beta_schedule": "linear"}
    scheduler = diffusers.DDPMScheduler(**settings)
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = load("diffusers", tmp_path)
    assert isinstance(model.schedule, Tabulated)
    t = (torch.arange(100, dtype=torch.float64) + 1) / 100
    torch.testing.assert_close(model.schedule.alpha(t).square().float(), scheduler.alphas_cumprod, rtol=1e-5, atol=0)


def test_names_of_older_versions(tmp_path):
    folder_of(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    expected = load("diffusers", tmp_path)
    new_to_old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(weights)
    for new, old in new_to_old.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    save_file(state, weights)
    found = load("diffusers", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_networks_that_are_not_supported_are_named(tmp_path):
    folder_of(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift' is not supported"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "block 'SkipDownBlock2D' is not supported"),
        ({"act_fn": "relu"}, "config.act_fn='relu' must be one of silu, swish"),
        ({"layers_per_block": 2}, "that the configuration is another network's"),
        ({"_class_name": "UNet2DConditionModel"}, "expected a UNet2DModel, found a UNet2DConditionModel"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=words):
            load("diffusers", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadFileError, match=r"expected config.json, found"):
        load("diffusers", tmp_path)
