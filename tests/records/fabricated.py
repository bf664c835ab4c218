"""A run directory made up without training: every file a finished run leaves, with known numbers."""

import math
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from scorefield.records import Journal, Measurement, Result, RunDir, image_grid, save_gif, save_png
from scorefield.records.figures import histogram, loss_by_noise

METRICS = {
    "fd_digits": Measurement(
        0.41237, {"floor": 0.5530, "n_samples": 2000, "against": "train", "extractor": "digits_cnn", "weights": "ema"}
    ),
    "bits_per_dim": Measurement(
        1.8130625, {"split": "test", "n_images": 360, "solver": "dopri5", "rtol": 1e-5, "solver_error": 0.0009}
    ),
    "nearest_train_ratio": Measurement(0.9713, {"statistic": "median", "n_samples": 2000, "reference_split": "test"}),
    "kid_digits": Measurement(-1.25e-05, {"subsets": 100, "subset_size": 500, "kernel": "cubic polynomial"}),
}
CONFIG = """experiment: digits
seed: 7
model:
  _target_: scorefield.models.NetworkModel
  schedule:
    _target_: scorefield.schedules.EDM
    sigma_data: 0.7
"""


def digits(count: int, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    """(count, 1, 8, 8) uint8: handwritten digits under Gaussian noise of the given standard deviation."""
    pixels = torch.from_numpy(load_digits().images[:count, None]) / 16
    noisy = pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8)


def write_journal(run: RunDir, steps: int = 4000) -> None:
    journal, rng = Journal(run.metrics), np.random.default_rng(0)
    for step in range(10, steps + 1, 10):
        loss = 0.35 + 4 * math.exp(-step / 250) + 0.04 * rng.standard_normal()
        journal.write(step, 128 * step, "train", loss=loss, learning_rate=2e-3 * min(1, step / 400))
        if step % 500 == 0:
            journal.write(
                step,
                128 * step,
                "validation",
                loss=0.38 + 4 * math.exp(-step / 250),
                fd_digits=0.42 + 30 * math.exp(-step / 300),
                bits_per_dim=math.nan if step == 500 else 1.81 + math.exp(-step / 400),
            )


def fabricate(path: Path, experiment: str = "digits") -> RunDir:
    run = RunDir(path).create()
    run.config.write_text(CONFIG)
    write_journal(run)
    for step in range(500, 4001, 500):
        save_png(run.samples_at(step), image_grid(digits(64, noise=500 / step), columns=8))
    save_png(run.final_samples, image_grid(digits(64, noise=0.03), columns=8))
    save_png(run.real_samples, image_grid(digits(64), columns=8))
    levels = np.geomspace(3.0, 0.01, 24)
    save_gif(run.trajectory, [image_grid(digits(64, noise=level), columns=8) for level in levels])
    sigma = np.geomspace(0.002, 80, 16)
    mean = 0.2 + 0.7 / (1 + (sigma / 0.4) ** 2)
    loss_by_noise(run.figure("loss_by_noise"), sigma, mean, 0.7 * mean, 1.35 * mean, band="quartiles")
    distances = np.random.default_rng(0).gamma(9, 0.2, (2, 500))
    histogram(run.figure("distance_to_nearest"), {"samples": distances[0], "test": distances[1]}, x_label="distance")
    Result(
        experiment=experiment,
        seed=7,
        config_hash="0123456789abcdef",
        metrics=METRICS,
        cost={"train_seconds": 118.4, "steps": 4000, "images": 512000, "parameters": 744193, "nfe": 79},
        versions={"python": "3.11.2", "torch": "2.13.0", "pytorch-lightning": "2.6.6"},
        git={"commit": "c0ffee" + 34 * "0", "dirty": True},
        command="scorefield train experiment=digits seed=7",
    ).write(run.result)
    return run
