"""The Fréchet distance between Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

Statistics are float64 sums, so that they add: over batches, over processes, and never in an order that matters beyond
rounding. The distance goes by the symmetric route,

    d^2(a, b) = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr (S_a^1/2 S_b S_a^1/2)^1/2,

whose eigenvalue problems are both symmetric: several times faster than the product S_a S_b and without complex roots.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

Protocol = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums over the features of n examples; adding two of them gives the statistics of both sets together.

    Args:
        n: number of examples.
        total: sum of the features, (D,) float64.
        outer: sum of the features' outer products, (D, D) float64.
        protocol: how the features were obtained, kept with the saved file.
    """

    n: int
    total: Tensor
    outer: Tensor
    protocol: Protocol = field(default_factory=dict)

    @classmethod
    def of(cls, features: Tensor, protocol: Protocol | None = None) -> "FeatureStatistics":
        """Statistics of features (N, D)."""
        if features.ndim != 2:
            raise ValueError(f"features has shape {tuple(features.shape)}; give one row per example, (N, D)")
        x = features.to(torch.float64)
        return cls(len(x), x.sum(0), x.T @ x, protocol or {})

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        return FeatureStatistics(self.n + other.n, self.total + other.total, self.outer + other.outer, self.protocol)

    def update(self, features: Tensor) -> "FeatureStatistics":
        """These statistics with more features (N, D) added."""
        return self + FeatureStatistics.of(features)

    @property
    def mean(self) -> Tensor:
        """Mean, (D,)."""
        return self.total / self.n

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance, (D, D)."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two examples, got n={self.n}")
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)

    @property
    def std(self) -> Tensor:
        """Standard deviation of each feature, (D,)."""
        return self.cov.diagonal().clamp(min=0).sqrt()

    def divided_by(self, scale: Tensor) -> "FeatureStatistics":
        """Statistics of the features divided by ``scale`` (D,), > 0."""
        if not (scale > 0).all():
            dead = (scale <= 0).nonzero().flatten().tolist()
            raise ValueError(f"scale is not positive for features {dead}: they are constant and cannot be standardised")
        scale = scale.to(self.total)
        return FeatureStatistics(
            self.n, self.total / scale, self.outer / torch.outer(scale, scale), {**self.protocol, "standardised": True}
        )

    def to(self, device: torch.device | str) -> "FeatureStatistics":
        """The same statistics on another device."""
        return FeatureStatistics(self.n, self.total.to(device), self.outer.to(device), self.protocol)

    def save(self, path: Path, more: Mapping[str, np.ndarray] | None = None) -> None:
        """Write ``mu``, ``sigma``, ``n``, as other projects do, the protocol as JSON, and ``more`` to an npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            **(more or {}),
            "mu": self.mean.cpu().numpy(),
            "sigma": self.cov.cpu().numpy(),
            "n": np.int64(self.n),
            "protocol": np.array(json.dumps(dict(self.protocol))),
        }
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, n: int | None = None) -> "FeatureStatistics":
        """Read an npz file with ``mu`` and ``sigma``.

        Args:
            path: the file.
            n: number of examples, for files of other projects that do not hold it.
        """
        with np.load(path, allow_pickle=False) as file:
            if "n" in file:
                n = int(file["n"])
            if n is None:
                raise ValueError(f"{path} does not say from how many examples it was made; pass n")
            mu, sigma = (torch.from_numpy(np.asarray(file[key], dtype=np.float64)) for key in ("mu", "sigma"))
            protocol = json.loads(str(file["protocol"])) if "protocol" in file else {}
        return cls(n, n * mu, (n - 1) * sigma + n * torch.outer(mu, mu), protocol)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet distance d^2 between the Gaussians with the moments of a and b (Heusel et al. 2017, eq. 6).

    To standardise, divide both by the deviations of one fixed set: `FeatureStatistics.divided_by`.
    """
    if a.total.shape != b.total.shape:
        raise ValueError(
            f"a has {len(a.total)} features and b has {len(b.total)}: they come from different extractors and have no "
            "distance"
        )
    cov_a, cov_b = a.cov, b.cov.to(a.cov)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    sandwich = root @ cov_b @ root
    overlap = torch.linalg.eigvalsh((sandwich + sandwich.T) / 2).clamp(min=0).sqrt().sum()
    difference = a.mean - b.mean.to(a.mean)
    # The four terms cancel for equal sets, which may leave a negative rounding error.
    return max(0.0, float(difference @ difference + cov_a.trace() + cov_b.trace() - 2 * overlap))


class FrechetDistance(Metric):
    """Fréchet distance of features seen so far to fixed reference statistics, summed over all processes.

    Args:
        reference: statistics of the real examples, always of a whole split.
        scale: divides every feature, (D,) > 0; None leaves features as they are. For a standardised distance give the
            deviations on the training split, `FeatureStatistics.std`.
    """

    full_state_update = False
    n: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, reference: FeatureStatistics, scale: Tensor | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.reference = self._scaled(reference)
        dim = len(reference.total)
        self.add_state("n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def _scaled(self, statistics: FeatureStatistics) -> FeatureStatistics:
        return statistics if self.scale is None else statistics.divided_by(self.scale)

    def update(self, features: Tensor) -> None:
        """Add features (N, D)."""
        if len(features) == 0:
            return
        new = FeatureStatistics.of(features.to(self.total.device))
        self.n = self.n + new.n
        self.total = self.total + new.total
        self.outer = self.outer + new.outer

    @property
    def statistics(self) -> FeatureStatistics:
        """Statistics of the features seen by this process, or by all of them inside ``compute``."""
        return FeatureStatistics(int(self.n), self.total, self.outer)

    def compute(self) -> Tensor:
        """The distance, float64."""
        distance = frechet_distance(self._scaled(self.statistics), self.reference)
        return torch.tensor(distance, dtype=torch.float64, device=self.total.device)
