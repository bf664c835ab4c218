"""Parallel Markov chains at one noise level, with every draw kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise


@dataclass(frozen=True)
class Draws:
    """What chains leave behind.

    Args:
        x: kept draws of each chain in their order, (chains, draws, *event), on the CPU.
        state: the kernel's last state, e.g. for `acceptance`.
        nfe: network evaluations of each chain.
    """

    x: Tensor
    state: State
    nfe: int


@torch.no_grad()
def run_chains(
    kernel: Kernel,
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    draws: int,
    burn_in: int = 0,
    thin: int = 1,
    cond: Cond | None = None,
    noise: Noise | None = None,
) -> Draws:
    """Move chains from x (B, *event) at times t (B,), and keep every ``thin``-th state after the burn-in.

    Args:
        kernel: one step of the chain, called with s = t.
        model: gives score, and energy where the kernel asks for it.
        x: where the chains start; spread them wider than the target, so that agreement means something.
        t: time of each chain.
        draws: states kept of each chain, >= 1.
        burn_in: steps left out at the start, >= 0; an adapting kernel adapts in them.
        thin: steps from one kept state to the next, >= 1.
        cond: conditions of the chains.
        noise: randomness.
    """
    if draws < 1 or burn_in < 0 or thin < 1:
        raise ValueError(f"draws={draws} and thin={thin} must be at least 1 and burn_in={burn_in} not negative")
    source = GlobalNoise() if noise is None else noise
    state, kept = kernel.init(x), []
    steps = burn_in + draws * thin
    for step in range(1, steps + 1):
        x, state = kernel.step(model, x, t, t, state, source, cond)
        if step > burn_in and (step - burn_in) % thin == 0:
            kept.append(x.cpu())
    return Draws(torch.stack(kept, 1), state, steps * kernel.calls)
