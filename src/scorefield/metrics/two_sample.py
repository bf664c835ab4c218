"""Distances between two sets of points that need no features, and the test for memorised examples."""

import torch
from torch import Tensor

from scorefield.noise import StreamNoise


def wasserstein_1d(a: Tensor, b: Tensor, order: float = 2.0) -> Tensor:
    """Wasserstein distance between the columns of a (N, K) and b (M, K), exact for any N and M; (K,).

    W_p^p is the integral of |F_a^-1(q) - F_b^-1(q)|^p over levels q; both quantile functions are steps.
    """
    n, m = len(a), len(b)
    # Integer levels in units of 1 / (n m), so that equal steps of the two sets coincide exactly.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    start, width = levels[:-1], levels.diff().to(a) / (n * m)
    gap = a.sort(0).values[start.to(a.device) // m] - b.sort(0).values[start.to(b.device) // n]
    return (width[:, None] * gap.abs() ** order).sum(0) ** (1 / order)


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, order: float = 2.0, seed: int = 0) -> float:
    """(E_theta W_p^p of the projections on theta)^(1/p), theta uniform on the sphere (Bonneel et al. 2015, eq. 5).

    Args:
        a: points, (N, *event).
        b: points, (M, *event).
        projections: number of directions.
        order: p, >= 1.
        seed: seed of the directions.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"a and b hold points of different shape: {tuple(a.shape[1:])} and {tuple(b.shape[1:])}")
    x, y = (points.flatten(1).double() for points in (a, b))
    theta = StreamNoise(seed, "projections").normal_like(torch.empty(x.shape[1], projections, dtype=torch.float64))
    theta = (theta / theta.norm(dim=0)).to(x.device)
    return float((wasserstein_1d(x @ theta, y @ theta, order) ** order).mean() ** (1 / order))


def nearest_distances(x: Tensor, reference: Tensor, chunk: int = 512) -> Tensor:
    """Euclidean distance of each point to its nearest reference point, (B,) float64.

    Searches all of the reference. The search takes |x|^2 - 2 x.y + |y|^2 in float64, which is exact for integer grey
    levels; the distance to the point found is then taken from the difference, which does not cancel.

    Args:
        x: points, (B, *event), of any type.
        reference: points, (N, *event), N >= 1.
        chunk: points of x and of the reference (times 16) compared at once.
    """
    if len(reference) == 0:
        raise ValueError("reference is empty")
    found = []
    for queries in x.flatten(1).split(chunk):
        q = queries.double()
        best = torch.full((len(q),), torch.inf, dtype=torch.float64, device=q.device)
        nearest = torch.zeros_like(q)
        for points in reference.flatten(1).split(16 * chunk):
            y = points.to(q)
            value, index = (y.square().sum(1) - 2 * q @ y.T).min(1)
            closer = value < best
            best = torch.where(closer, value, best)
            nearest[closer] = y[index[closer]]
        found.append(torch.linalg.vector_norm(q - nearest, dim=1))
    return torch.cat(found)
