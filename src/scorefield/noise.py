"""Sources of randomness. Randomness is an argument everywhere; nothing below reads a hidden state.

Three sources, one interface:

* `GlobalNoise` draws from torch's global generator: notebooks and quick tries.
* `StreamNoise` is one stream named by a key such as (seed, purpose, rank, step): training. Two keys give independent
  streams, so ranks differ, evaluation cannot shift training, and a resumed step draws what the lost one drew.
* `IndexedNoise` keeps one stream per sample index: evaluation. Sample ``i`` depends on (seed, purpose, i) alone, never
  on its batch-mates, the batch size or the number of processes.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def key_of(*parts: int | str) -> int:
    """A 64-bit integer that depends on every part of the key; distinct keys collide with probability 2**-64."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


class Noise(Protocol):
    """A source of random tensors shaped, typed and placed like a given one."""

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal."""
        ...

    def uniform_like(self, x: Tensor) -> Tensor:
        """Uniform on [0, 1)."""
        ...

    def signs_like(self, x: Tensor) -> Tensor:
        """Rademacher: -1 or 1 with probability 1/2 each."""
        ...


class GlobalNoise:
    """Draws from torch's global generator of the tensor's device."""

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def uniform_like(self, x: Tensor) -> Tensor:
        return torch.rand_like(x)

    def signs_like(self, x: Tensor) -> Tensor:
        return torch.randint_like(x, 2) * 2 - 1


class StreamNoise:
    """One stream of randomness, named by its key.

    Args:
        key: what the stream is for, e.g. ``(seed, "objective", rank, step)``.
    """

    def __init__(self, *key: int | str) -> None:
        self.seed = key_of(*key)
        self._generators: dict[torch.device, torch.Generator] = {}

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            # torch's CPU generator keeps the low 32 bits of a seed only; both halves enter there.
            seed = self.seed ^ (self.seed >> 32) if device.type == "cpu" else self.seed
            self._generators[device] = torch.Generator(device).manual_seed(seed & (2**63 - 1))
        return self._generators[device]

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self._generator(x.device), dtype=x.dtype, device=x.device)

    def uniform_like(self, x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=self._generator(x.device), dtype=x.dtype, device=x.device)

    def signs_like(self, x: Tensor) -> Tensor:
        bits = torch.randint(2, x.shape, generator=self._generator(x.device), dtype=x.dtype, device=x.device)
        return bits * 2 - 1

    def permutation(self, n: int) -> Tensor:
        """A random order of ``range(n)``, on the CPU."""
        return torch.randperm(n, generator=self._generator(torch.device("cpu")))


class IndexedNoise:
    """One stream per sample: row ``b`` of every draw comes from the stream of ``indices[b]`` alone.

    Each stream is a Philox counter generator (Salmon et al. 2011) whose 128-bit key is (seed and purpose, index), so
    that streams of different samples never overlap. Draws are made in float64 on the CPU and then cast and moved: a
    sample's noise is the same in every precision and on every device.

    Args:
        seed: the evaluation's seed.
        purpose: what the draws are for, e.g. ``"samples"`` or ``"dequantise"``.
        indices: global index of each sample of the batch, length B.
    """

    def __init__(self, seed: int, purpose: str, indices: Sequence[int] | Tensor) -> None:
        self.indices = [int(i) for i in indices]
        family = key_of(seed, purpose)
        keys = [np.array([family, i], dtype=np.uint64) for i in self.indices]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[0] != len(self._streams):
            raise ValueError(
                f"x has {x.shape[0]} rows, but this IndexedNoise was made for {len(self._streams)} sample indices; "
                "make one for exactly the samples of the batch"
            )
        return torch.empty(x.shape, dtype=torch.float64)

    def normal_like(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        for row, stream in zip(rows.numpy(), self._streams, strict=True):
            stream.standard_normal(out=row)
        return rows.to(x)

    def uniform_like(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        for row, stream in zip(rows.numpy(), self._streams, strict=True):
            stream.random(out=row)
        # Rounding to a narrower type may reach 1, which the interval excludes.
        below_one = torch.nextafter(torch.ones((), dtype=x.dtype), torch.zeros((), dtype=x.dtype))
        return rows.to(x).clamp(max=float(below_one))

    def signs_like(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        for row, stream in zip(rows.numpy(), self._streams, strict=True):
            row[...] = stream.integers(0, 2, row.shape) * 2 - 1
        return rows.to(x)
