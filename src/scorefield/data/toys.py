"""Distributions in the plane, drawn from a seed; where the density has a closed form it is there as ``log_prob``."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TypedDict, Unpack

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scorefield.data.base import Data, Split
from scorefield.data.transforms import Identity, Transform
from scorefield.noise import Noise, StreamNoise


class Splits(TypedDict, total=False):
    """The arguments that all toys share, see `Toy`."""

    n_train: int
    n_validation: int
    n_test: int
    seed: int
    transform: Transform | None


class Toy(Data):
    """A distribution in the plane with three fixed splits.

    Args:
        n_train: number of training examples.
        n_validation: number of validation examples.
        n_test: number of test examples.
        seed: seed of the splits, which are independent of each other.
        transform: data space to model space; a scale near the data's deviation suits variance preserving schedules.
    """

    shape = (2,)

    def __init__(
        self,
        n_train: int = 20000,
        n_validation: int = 2000,
        n_test: int = 2000,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        for name, n in (("n_train", n_train), ("n_validation", n_validation), ("n_test", n_test)):
            if n < 1:
                raise ValueError(f"{name}={n} must be at least 1")
        self.n_train, self.n_validation, self.n_test = n_train, n_validation, n_test
        self.seed = seed
        self.transform = Identity() if transform is None else transform

    @abstractmethod
    def draw(self, n: int, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """n points (n, 2), float64, and their classes (n,) where there are any."""

    def sample(self, n: int, noise: Noise) -> Split:
        """n fresh examples."""
        x, labels = self.draw(n, noise)
        return Split(x.float(), labels)

    @cached_property
    def _train(self) -> Split:
        return self.sample(self.n_train, StreamNoise(self.seed, self.name, "train"))

    @cached_property
    def _validation(self) -> Split:
        return self.sample(self.n_validation, StreamNoise(self.seed, self.name, "validation"))

    @cached_property
    def _test(self) -> Split:
        return self.sample(self.n_test, StreamNoise(self.seed, self.name, "test"))

    def train(self) -> Split:
        return self._train

    def validation(self) -> Split:
        return self._validation

    def test(self) -> Split:
        return self._test


class Mixture(Toy):
    """Gaussian mixture sum_k w_k N(mu_k, v_k I); the class of a point is its component.

    Args:
        weights: w_k > 0, normalised here; length K.
        means: mu_k, (K, 2).
        variances: v_k > 0, length K.
        **splits: sizes, seed and transform, see `Toy`.
    """

    name = "mixture"

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[Sequence[float]],
        variances: Sequence[float],
        **splits: Unpack[Splits],
    ) -> None:
        super().__init__(**splits)
        w, self.means, self.variances = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, variances))
        if not (w > 0).all() or not (self.variances > 0).all():
            raise ValueError(f"weights={weights} and variances={variances} must be positive")
        if self.means.shape != (len(w), 2) or self.variances.shape != (len(w),):
            raise ValueError(f"means must be (K, 2) and variances (K,) for K={len(w)} weights")
        self.weights = w / w.sum()
        self.classes = len(w)

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 4.0, std: float = 0.4, **splits: Unpack[Splits]) -> "Mixture":
        """Equal components on a circle."""
        angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
        means = radius * torch.stack([angle.cos(), angle.sin()], 1)
        return cls([1.0] * modes, means.tolist(), [std**2] * modes, **splits)

    @classmethod
    def grid(cls, side: int = 5, spacing: float = 2.0, std: float = 0.2, **splits: Unpack[Splits]) -> "Mixture":
        """Equal components on a square lattice around the origin."""
        line = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
        means = torch.cartesian_prod(line, line)
        return cls([1.0] * len(means), means.tolist(), [std**2] * len(means), **splits)

    @classmethod
    def unequal_pair(cls, **splits: Unpack[Splits]) -> "Mixture":
        """1/5 N((-5, -5), I) + 4/5 N((5, 5), I), whose weights Langevin dynamics misses (Song & Ermon 2019, 3.2.2)."""
        return cls([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], **splits)

    @cached_property
    def _density(self) -> MixtureSameFamily:
        std = self.variances.sqrt()[:, None].expand_as(self.means)
        return MixtureSameFamily(Categorical(self.weights), Independent(Normal(self.means, std), 1))

    def draw(self, n: int, noise: Noise) -> tuple[Tensor, Tensor | None]:
        component = _choose(self.weights, n, noise)
        std = self.variances[component].sqrt()[:, None]
        return self.means[component] + std * noise.normal_like(_empty(n, 2)), component

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, 2) -> (B,)."""
        return self._density.log_prob(x.double()).to(x.dtype)


class Checkerboard(Toy):
    """Uniform on the dark squares of a board centred at the origin; the dark squares meet at corners.

    Args:
        squares: number of squares on a side, even.
        width: width of the board.
        **splits: sizes, seed and transform, see `Toy`.
    """

    name = "checkerboard"

    def __init__(self, squares: int = 4, width: float = 8.0, **splits: Unpack[Splits]) -> None:
        super().__init__(**splits)
        if squares < 2 or squares % 2:
            raise ValueError(f"squares={squares} must be even and at least 2, so that half of the board is dark")
        self.squares, self.width = squares, width

    def draw(self, n: int, noise: Noise) -> tuple[Tensor, Tensor | None]:
        place = noise.uniform_like(_empty(n, 2)) * self.squares
        odd = place.floor().sum(1) % 2
        # A point on a light square moves one square to the right, around the edge of the board.
        place[:, 0] = (place[:, 0] + odd) % self.squares
        return (place / self.squares - 0.5) * self.width, None

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, 2) -> (B,): -log of half the board's area on dark squares, -inf elsewhere."""
        place = (x / self.width + 0.5) * self.squares
        on_board = ((place >= 0) & (place < self.squares)).all(1)
        dark = on_board & (place.floor().sum(1) % 2 == 0)
        inside = x.new_full((len(x),), -math.log(self.width**2 / 2))
        return torch.where(dark, inside, -math.inf)


class Rings(Toy):
    """Concentric circles, equally likely, blurred by isotropic noise; the class of a point is its circle.

    Args:
        radii: radius of each circle.
        std: deviation of the noise.
        **splits: sizes, seed and transform, see `Toy`.
    """

    name = "rings"

    def __init__(self, radii: Sequence[float] = (1.0, 2.5, 4.0), std: float = 0.12, **splits: Unpack[Splits]) -> None:
        super().__init__(**splits)
        if std <= 0 or min(radii) < 0:
            raise ValueError(f"std={std} must be positive and radii={radii} not negative")
        self.radii = torch.tensor(radii, dtype=torch.float64)
        self.std = std
        self.classes = len(radii)

    def draw(self, n: int, noise: Noise) -> tuple[Tensor, Tensor | None]:
        ring = _choose(torch.full_like(self.radii, 1 / len(self.radii)), n, noise)
        angle = 2 * math.pi * noise.uniform_like(_empty(n))
        circle = torch.stack([angle.cos(), angle.sin()], 1)
        return self.radii[ring, None] * circle + self.std * noise.normal_like(circle), ring

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, 2) -> (B,).

        Averaging the noise over a circle of radius r gives exp(-(|x| - r)^2 / 2 std^2) e^-z I_0(z) / (2 pi std^2) with
        z = |x| r / std^2: the Rice density of |x|, spread over its circle.
        """
        distance = torch.linalg.vector_norm(x.double(), dim=1)[:, None]
        variance = self.std**2
        bessel = torch.special.i0e(distance * self.radii / variance).log()
        each = bessel - (distance - self.radii).square() / (2 * variance) - math.log(2 * math.pi * variance)
        return (torch.logsumexp(each, 1) - math.log(len(self.radii))).to(x.dtype)


class SwissRoll(Toy):
    """A spiral of one and a half turns, (a cos a, a sin a) with a uniform on [1.5 pi, 4.5 pi], scaled and blurred.

    Args:
        radius: distance of the spiral's outer end from the origin.
        std: deviation of the isotropic noise, >= 0; with 0 the points lie on a curve and have no density.
        **splits: sizes, seed and transform, see `Toy`.
    """

    name = "swiss_roll"

    def __init__(self, radius: float = 4.0, std: float = 0.1, **splits: Unpack[Splits]) -> None:
        super().__init__(**splits)
        if std < 0:
            raise ValueError(f"std={std} must not be negative; 0 leaves the curve itself")
        self.radius, self.std = radius, std
        self.has_density = std > 0

    def draw(self, n: int, noise: Noise) -> tuple[Tensor, Tensor | None]:
        angle = (1.5 + 3 * noise.uniform_like(_empty(n))) * math.pi
        spiral = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1) * (self.radius / (4.5 * math.pi))
        return spiral + self.std * noise.normal_like(spiral), None


class TwoMoons(Toy):
    """Two interleaved half circles of equal weight, centred at the origin and blurred; the class is the half circle.

    Args:
        radius: radius of the half circles.
        std: deviation of the isotropic noise, >= 0; with 0 the points lie on curves and have no density.
        **splits: sizes, seed and transform, see `Toy`.
    """

    name = "two_moons"
    classes = 2

    def __init__(self, radius: float = 2.0, std: float = 0.15, **splits: Unpack[Splits]) -> None:
        super().__init__(**splits)
        if std < 0:
            raise ValueError(f"std={std} must not be negative; 0 leaves the curve itself")
        self.radius, self.std = radius, std
        self.has_density = std > 0

    def draw(self, n: int, noise: Noise) -> tuple[Tensor, Tensor | None]:
        moon = _choose(torch.tensor([0.5, 0.5], dtype=torch.float64), n, noise)
        angle = math.pi * noise.uniform_like(_empty(n))
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)  # the lower moon is its point reflection
        arc = self.radius * upper * (1 - 2 * moon[:, None])
        return arc + self.std * noise.normal_like(arc), moon


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


def _choose(weights: Tensor, n: int, noise: Noise) -> Tensor:
    """n indices k with probabilities ``weights`` (K,), int64."""
    level = noise.uniform_like(_empty(n))
    return torch.searchsorted(weights.cumsum(0), level, right=True).clamp(max=len(weights) - 1)
