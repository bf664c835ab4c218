"""Features of a set of real images, kept in a file that other projects read too."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.errors import BadFileError, UserError
from scorefield.metrics.features import FeatureExtractor
from scorefield.metrics.frechet import FeatureStatistics


@dataclass(frozen=True)
class Reference:
    """Moments of features, and the features themselves where they are kept.

    Args:
        statistics: moments, with the protocol by which they were obtained.
        features: (N, D) float32; None in files that hold the moments alone, as other projects' do.
    """

    statistics: FeatureStatistics
    features: Tensor | None = None

    @classmethod
    def of(
        cls,
        extractor: FeatureExtractor,
        images: Tensor,
        protocol: dict[str, str | int | None],
        batch_size: int = 256,
        keep: bool = True,
        progress: Callable[[int], None] = lambda n: None,
    ) -> "Reference":
        """Extract features of images (N, C, H, W), grey levels.

        Args:
            extractor: the network.
            images: the images.
            protocol: what they are, beside the extractor's own protocol.
            batch_size: images at once; changes the speed only.
            keep: whether to keep the features, which kernel distance, precision and recall need.
            progress: told the number of images of each batch.
        """
        if not len(images):
            raise ValueError("images is empty: there is nothing to take statistics of")
        nothing = torch.empty(0, extractor.dim)
        statistics, parts = FeatureStatistics.of(nothing, {**extractor.protocol(), **protocol}), []
        for batch in images.split(batch_size):
            features = extractor.extract(batch, batch_size)
            statistics = statistics.update(features)
            parts += [features] if keep else []
            progress(len(batch))
        return cls(statistics, torch.cat(parts) if keep else None)

    def save(self, path: Path) -> None:
        """Write ``mu``, ``sigma``, ``n``, the protocol as JSON, and ``features`` where they are kept."""
        self.statistics.save(path, {} if self.features is None else {"features": self.features.numpy()})

    @classmethod
    def load(cls, path: Path, n: int | None = None) -> "Reference":
        """Read an npz file with ``mu`` and ``sigma``, ours or another project's.

        Args:
            path: the file.
            n: number of images, for files that do not say.

        Raises:
            FileNotFoundError: there is no such file.
            BadFileError: it holds no moments, or such that are none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: expected an .npz file, as `scorefield stats` writes it")
        try:
            statistics = FeatureStatistics.load(path, n)
            with np.load(path, allow_pickle=False) as file:
                features = torch.from_numpy(file["features"]) if "features" in file else None
        except Exception as error:  # the reader answers damage in many ways
            raise BadFileError(f"{path}: expected an npz file with mu (D,) and sigma (D, D): {error}") from error
        d = len(statistics.total)
        whole = statistics.outer.shape == (d, d) and bool(torch.isfinite(statistics.outer).all())
        if not whole or (features is not None and features.shape != (statistics.n, d)):
            raise BadFileError(f"{path}: expected finite mu (D,), sigma (D, D) and features (n, D) that fit together")
        return cls(statistics, features)

    def require(self, extractor: FeatureExtractor, path: Path) -> None:
        """Refuse features of another kind than the extractor's.

        Files of other projects name no extractor; of them only the number of features is known.

        Raises:
            UserError: with what differs.
        """
        for name, ours in extractor.protocol().items():
            theirs = self.statistics.protocol.get(name, ours)
            if theirs != ours:
                raise UserError(f"{path} was made with {name}={theirs}, and these images are measured with {ours}")
        if len(self.statistics.total) != extractor.dim:
            raise UserError(
                f"{path} has {len(self.statistics.total)} features, and {extractor.name} has {extractor.dim}"
            )
