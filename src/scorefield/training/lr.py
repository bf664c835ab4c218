"""Learning-rate schedules, per optimiser step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup: float, steps: int) -> LambdaLR:
    """Linear from 0 over the first part of the run, then a half cosine to 0 at its end (Loshchilov & Hutter 2017).

    Args:
        optimizer: whose rate is scheduled.
        warmup: length of the linear part as a fraction of the run, in [0, 1).
        steps: length of the run, >= 1.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} is a fraction of the run and must be in [0, 1)")
    rise = warmup * steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise))))

    return LambdaLR(optimizer, factor)
