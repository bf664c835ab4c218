"""Whether Markov chains have forgotten their start and how much their draws are worth, by ArviZ."""

import numpy as np
from arviz_stats.base import array_stats
from torch import Tensor


def effective_sample_size(chains: Tensor) -> Tensor:
    """Number of independent draws worth as much for the mean of each coordinate (Vehtari et al. 2021, eq. 12); (d,).

    Args:
        chains: draws of several chains, (chains, draws, *event), at least 4 draws.
    """
    return _each(array_stats.ess, chains)


def r_hat(chains: Tensor) -> Tensor:
    """Rank-normalised split R-hat of each coordinate (Vehtari et al. 2021, section 4); (d,).

    1 where the chains agree; above 1.01 they do not yet sample the same law.

    Args:
        chains: draws of several chains, (chains, draws, *event), at least 4 draws.
    """
    return _each(array_stats.rhat, chains)


def _each(statistic: object, chains: Tensor) -> Tensor:
    if chains.ndim < 2 or chains.shape[1] < 4:
        raise ValueError(f"chains must be (chains, draws, *event) with at least 4 draws, got {tuple(chains.shape)}")
    if not chains.isfinite().all():
        raise ValueError("chains hold values that are not finite: they have diverged, and no statistic describes them")
    values = chains.detach().cpu().double().numpy().reshape(*chains.shape[:2], -1)
    assert callable(statistic)
    found = [statistic(values[..., i], chain_axis=0, draw_axis=1) for i in range(values.shape[-1])]
    return chains.new_tensor(np.array(found, dtype=np.float64).tolist()).double()
