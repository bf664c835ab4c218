"""Functions of time, computed once for all batches that are taken through the same times.

What a sampler's step needs to know of its times (scales, conversions, weights) is some sixty operations on one number
for each sample, the same number for all of them: more work than the step's own arithmetic, and the same again for every
batch. A sampler therefore marks its times as `shared`, and a function marked by `once` looks such times up.

The mark sits on the tensor itself. Nothing derived from it inherits the mark, be it a slice, a copy, or what a
derivative follows in its place: that is computed with as ever.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

_MOST = 4096  # results kept of one function
_LARGEST = 512  # batch of which they are kept: larger ones would fill the memory, and have other costs


class Changeable(ABC):
    """An object whose attributes may be set anew, after which what was made of it no longer holds."""

    @abstractmethod
    def state(self) -> Hashable:
        """What tells it from others, and from itself before a change."""


def shared(times: Tensor, x: Tensor) -> list[Tensor]:
    """Each of the times (K,) for all samples of x (B, *event) at once: K tensors (B,) that are not to be written to."""
    rows = list(times.to(x.device)[:, None].expand(-1, len(x)).unbind())
    for row, number in zip(rows, times.tolist(), strict=True):
        row.shared = number  # type: ignore[attr-defined]
    return rows


def once(function: Callable[..., Made]) -> Callable[..., Made]:
    """Remember what a function makes of times shared by up to 512 samples; with any other it is called.

    Args:
        function: takes times (B,) and hashable values, by position, and depends on nothing else. Nobody writes to what
            it returns.
    """
    kept: dict[tuple[Hashable, ...], Made] = {}

    @wraps(function)
    def remembered(*args: Any) -> Made:
        key: list[Hashable] = []
        for argument in args:
            if isinstance(argument, Tensor):
                number = getattr(argument, "shared", None)
                if number is None or argument.requires_grad or len(argument) > _LARGEST:
                    return function(*args)
                key.append((number, len(argument), argument.dtype, argument.device))
            else:
                key.append(argument.state() if isinstance(argument, Changeable) else argument)
        known = tuple(key)
        if known not in kept:
            if len(kept) >= _MOST:
                kept.clear()
            # Tensors made in inference mode could not enter a graph later.
            with torch.inference_mode(False), torch.no_grad():
                kept[known] = function(*args)
        return kept[known]

    return remembered
