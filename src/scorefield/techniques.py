"""NCSNv2's numbers as functions of the data: largest level, ratio of the levels, Langevin step (Song & Ermon 2020).

Technique 1   sigma_1 = largest distance between two training examples
Technique 2   gamma = sigma_(i-1) / sigma_i such that Phi(sqrt(2 D) (gamma - 1) + 3 gamma)
              - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = 0.5: samples of one level lie where the next has its mass
Technique 4   epsilon such that after T steps at each level the samples' standard deviation is that of the level
"""

import math
from dataclasses import dataclass

from scipy.optimize import brentq, minimize_scalar
from torch import Tensor


def largest_distance(x: Tensor, chunk: int = 1024) -> float:
    """max_ij |x_i - x_j|, of all pairs (Song & Ermon 2020, technique 1).

    Searches in float64 by |x|^2 - 2 x.y + |y|^2 after centring, which bounds the cancellation by the result itself; the
    distance of the pair found is taken from its difference.

    Args:
        x: examples in model space, (N, *event), N >= 2.
        chunk: examples compared with all others at once; changes the memory only.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} examples, and a distance needs two")
    points = x.flatten(1).double()
    points = points - points.mean(0)
    squares, best, pair = points.square().sum(1), -1.0, (0, 1)
    for first, part in enumerate(points.split(chunk)):
        rows = first * chunk
        distance = squares[rows : rows + len(part), None] + squares - 2 * part @ points.T
        value, where = distance.flatten().max(0)
        if float(value) > best:
            best, pair = float(value), (rows + int(where) // len(points), int(where) % len(points))
    return float((points[pair[0]] - points[pair[1]]).norm())


def overlap(ratio: float, dims: int) -> float:
    """Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) (Song & Ermon 2020, technique 2).

    The probability that a sample of one level has the distance from its mean that is usual, within three deviations, at
    the next.

    Args:
        ratio: gamma, of a level to the next smaller one, >= 1.
        dims: D, number of dimensions.
    """
    shift = math.sqrt(2 * dims) * (ratio - 1)
    return _normal_cdf(shift + 3 * ratio) - _normal_cdf(shift - 3 * ratio)


def ladder_ratio(dims: int, wanted: float = 0.5) -> float:
    """The ratio gamma > 1 whose `overlap` is ``wanted``; infinite where levels of any ratio overlap more.

    The overlap tends to 0 as gamma grows only if sqrt(2 D) > 3: in up to 4 dimensions the condition bounds nothing.

    Args:
        dims: D, number of dimensions, >= 1.
        wanted: in (0, 1); 0.5 in the paper's text, while its published ladders have 0.566.
    """
    if dims < 1 or not 0 < wanted < overlap(1.0, 1):
        raise ValueError(f"dims={dims} must be positive and wanted={wanted} in (0, {overlap(1.0, 1):.4f})")
    far = 2.0
    if math.sqrt(2 * dims) <= 3:
        return math.inf
    while overlap(far, dims) > wanted:
        far *= 2
    return float(brentq(lambda ratio: overlap(ratio, dims) - wanted, 1.0, far, xtol=1e-13))


def level_excess(step: float, ratio: float, corrections: int) -> float:
    """s_T^2 / sigma_i^2 = (1 - eta)^(2 T) (gamma^2 - b) + b, b = 2 / (2 - eta) (Song & Ermon 2020, proposition 3).

    The variance after T Langevin steps at a level, from samples of the level before, over the level's own.

    Args:
        step: eta = epsilon / sigma_L^2, in (0, 1].
        ratio: gamma, >= 1.
        corrections: T, >= 1.
    """
    stationary = 2 / (2 - step)
    return (1 - step) ** (2 * corrections) * (ratio**2 - stationary) + stationary


def langevin_step(ratio: float, corrections: int) -> float:
    """eta = epsilon / sigma_L^2 that brings `level_excess` closest to 1 (Song & Ermon 2020, technique 4).

    Args:
        ratio: gamma, > 1.
        corrections: T, >= 1.
    """
    if ratio <= 1 or corrections < 1:
        raise ValueError(f"ratio={ratio} must be above 1 and corrections={corrections} at least 1")
    # The excess is above 1 for every step; on a logarithmic scale it falls to one minimum and rises again.
    found = minimize_scalar(
        lambda log_step: abs(level_excess(math.exp(log_step), ratio, corrections) - 1),
        bounds=(math.log(1e-8), 0.0),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(math.exp(found.x))


@dataclass(frozen=True)
class Recipe:
    """NCSNv2's settings for a data set.

    Args:
        sigma_max: largest level, in units of the data.
        sigma_min: smallest level.
        ratio: of a level to the next smaller one, as the ladder of whole levels has it.
        levels: number of levels L.
        corrections: Langevin steps at each level, T.
        epsilon: step size at the smallest level, of x + epsilon score + sqrt(2 epsilon) z.
        overlap: of neighbouring levels.
        excess: variance of the samples after a level over the level's own.
    """

    sigma_max: float
    sigma_min: float
    ratio: float
    levels: int
    corrections: int
    epsilon: float
    overlap: float
    excess: float


def ncsnv2(x: Tensor, sigma_min: float = 0.01, corrections: int = 5, wanted: float = 0.5) -> Recipe:
    """The three techniques, in the paper's order; in up to 4 dimensions, where the second is silent, levels halve.

    Args:
        x: training examples in model space, (N, *event).
        sigma_min: smallest level, > 0, in units of the data: chosen by eye (0.01 for images in [0, 1]).
        corrections: Langevin steps at each level, >= 1: chosen by budget.
        wanted: overlap of neighbouring levels.
    """
    dims, sigma_max = x[0].numel(), largest_distance(x)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min} must be positive and below the largest distance, {sigma_max:.4g}")
    log_range = math.log(sigma_max / sigma_min)
    wanted_ratio = ladder_ratio(dims, wanted)
    levels = 1 + max(1, round(log_range / math.log(wanted_ratio if math.isfinite(wanted_ratio) else 2.0)))
    ratio = math.exp(log_range / (levels - 1))
    step = langevin_step(ratio, corrections)
    return Recipe(
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        ratio=ratio,
        levels=levels,
        corrections=corrections,
        epsilon=step * sigma_min**2,
        overlap=overlap(ratio, dims),
        excess=level_excess(step, ratio, corrections),
    )


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
