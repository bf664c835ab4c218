"""Features of images, in which distances between sets of images are taken.

An extractor is a frozen network from integer grey levels (B, C, H, W) to features (B, D). Distances taken with it bear
its name: only Inception's is called FID, every other one is ``fd_<name>``.
"""

from abc import ABC, abstractmethod
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3


class WeightsUnavailable(FileNotFoundError):  # noqa: N818 (an announced state of affairs, which a run may go on from)
    """An extractor's weights are not on this machine."""


class FeatureExtractor(nn.Module, ABC):
    """A frozen network that turns images into features.

    Attributes:
        name: names the extractor in records.
        dim: number of features D.
        levels: number of grey levels of the images it takes.
        weights_hash: first 16 hexadecimal digits of the SHA-256 of the weights file.
        resize: how images are resized before the network.
        classes: number of classes of its logits, where they are those of the data it was trained on; None elsewhere.
    """

    name: str
    dim: int
    levels: int
    weights_hash: str
    resize: str = "none"
    classes: int | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D), float32, of integer grey levels (B, C, H, W), uint8."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Class logits (B, classes) that belong to features (B, D)."""

    @property
    def metric(self) -> str:
        """Name of the Fréchet distance taken with these features."""
        return f"fd_{self.name}"

    def protocol(self) -> dict[str, str | int | float | bool | None]:
        """What must be equal for two distances to be comparable."""
        return {"extractor": self.name, "features": self.dim, "weights": self.weights_hash, "resize": self.resize}

    def freeze(self) -> Self:
        """Switch off training and gradients of the weights, for good."""
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever module holds it: batch statistics must never enter a metric."""
        return super().train(False)

    @torch.no_grad()
    def extract(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Features (N, D) on the CPU of any number of images (N, C, H, W), a batch at a time."""
        device = next(self.parameters()).device
        return torch.cat([self(batch.to(device)).cpu() for batch in images.split(batch_size)])

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images has type {images.dtype} and shape {tuple(images.shape)}; {self.name} takes grey levels "
                "(B, C, H, W) as uint8: quantise samples first"
            )


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers for 8x8 digits; smooth activations keep every feature alive.

    Args:
        dim: number of features before the last layer.
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.project = nn.Linear(64 * 4 * 4, dim)
        self.head = nn.Linear(dim, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, dim) of images (B, 1, 8, 8) in [-1, 1]."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.silu(conv(x))
        return F.silu(self.project(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class DigitFeatures(FeatureExtractor):
    """Penultimate features of a small classifier of the 8x8 digits, trained on the training split alone.

    Args:
        weights: safetensors file of a `DigitClassifier`; None takes the one that comes with the package.
    """

    name = "digits"
    dim = 64
    levels = 17
    classes = 10

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.net = DigitClassifier(self.dim)
        with as_file(files("scorefield.metrics") / "weights" / "digits_classifier.safetensors") as shipped:
            path = shipped if weights is None else Path(weights)
            if not path.is_file():
                raise WeightsUnavailable(
                    f"weights={path} does not exist; leave it out for the weights that come with the package, or train "
                    "them with scripts/train_digit_classifier.py"
                )
            self.net.float().load_state_dict(load_file(path))
            self.weights_hash = file_hash(path)
        self.freeze()

    @staticmethod
    def scale(levels: Tensor) -> Tensor:
        """Grey levels 0..16 to [-1, 1], as the classifier sees them."""
        return levels.float() / 8 - 1

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(f"images has shape {tuple(images.shape)}; {self.name} takes 8x8 digits, (B, 1, 8, 8)")
        if images.numel() and int(images.max()) >= self.levels:
            raise ValueError(f"images reaches {int(images.max())}; {self.name} takes the grey levels 0..16, not pixels")
        return self.net.features(self.scale(images))

    def logits(self, features: Tensor) -> Tensor:
        return self.net.head(features)


class InceptionFeatures(FeatureExtractor):
    """The 2048 pooled features of the 2015 Inception network, as FID is defined on (Heusel et al. 2017).

    The network and its TensorFlow-compatible resizing to 299x299 are torch-fidelity's. Grey images are repeated on
    three channels.

    Args:
        weights: weights file published by torch-fidelity; None takes torch hub's cache.
        download: fetch missing weights into torch hub's cache.
    """

    name = "inception-v3-compat"
    dim = 2048
    levels = 256
    resize = "299x299 bilinear, TensorFlow 1 compatible, no antialiasing"

    def __init__(self, weights: str | Path | None = None, download: bool = False) -> None:
        super().__init__()
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
        path = cached if weights is None else Path(weights)
        if not path.is_file():
            if weights is not None or not download:
                raise WeightsUnavailable(
                    f"the Inception weights are not at {path}: download {URL_INCEPTION_V3} and set weights to its "
                    "path, or set download=True, or leave the metric out"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), progress=False)
        torch.load(path, map_location="cpu", weights_only=True)  # refuses pickled code, which the next line would run
        self.net = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=str(path))
        self.weights_hash = file_hash(path)
        self.freeze()

    @property
    def metric(self) -> str:
        return "fid"

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        return self.net(images.expand(-1, 3, -1, -1))[0]

    def logits(self, features: Tensor) -> Tensor:
        """Logits without the last layer's bias, on which the Inception score is defined."""
        return features @ self.net.fc.weight.T


def file_hash(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file."""
    return sha256(path.read_bytes()).hexdigest()[:16]
