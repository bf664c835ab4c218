"""Bits per dimension on held-out data: by the probability flow, and by variational bounds."""

import math
from abc import abstractmethod
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from scorefield.data import Split
from scorefield.dequantisation import Dequantisation, Dequantiser, UniformDequantisation
from scorefield.errors import NumericalError
from scorefield.metrics.bits_per_dim import BitsPerDim as BitsPerDimMetric
from scorefield.metrics.bits_per_dim import bits_per_dim
from scorefield.models import Cond
from scorefield.noise import IndexedNoise, Noise
from scorefield.ode import DormandPrince
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.result import Measurement
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.datamodule import shard
from scorefield.variational import VariationalBound
from scorefield.variational_chain import ChainBound


class LikelihoodEvaluator(Evaluator):
    """-log2 p(x) / d of the validation split during training and of the test split at the end.

    The number of example i depends on (seed, i) alone.

    Args:
        n: number of validation examples during training.
        n_final: number of test examples at the end; None takes them all.
        batch_size: examples at once; changes the speed only.
        draws: estimates per example at the end.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    name: str  # of the metric, behind "bits_per_dim" or "nll_nats"

    def __init__(self, n: int, n_final: int | None, batch_size: int, draws: int, seed: int, every: int) -> None:
        super().__init__(every)
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1")
        self.n, self.n_final, self.batch_size = n, n_final, batch_size
        self.draws, self.seed = draws, seed

    @abstractmethod
    def log_prob(
        self, occasion: Occasion, indices: list[int], draw: int, dequantiser: Dequantiser | None
    ) -> tuple[Tensor, float | Tensor]:
        """log p of examples in data space, in nats, and the evaluations that each took; both (B,)."""

    @abstractmethod
    def method(self, occasion: Occasion, dequantiser: Dequantiser | None) -> dict[str, object]:
        """How it is computed, for the record."""

    def dequantiser(self, occasion: Occasion) -> Dequantiser | None:
        """The law of the dequantisation; None where there is none."""
        return None

    def dequantised(self, occasion: Occasion) -> str:
        """What the record calls it."""
        return "none"

    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        data = occasion.data
        n, _ = self.examples(occasion)
        draws = self.draws if occasion.final else 1
        dequantiser = self.dequantiser(occasion)
        metric = BitsPerDimMetric(math.prod(data.data.shape)).to(occasion.device)
        calls = MeanMetric().to(occasion.device)
        for batch in shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size):
            found = [self.log_prob(occasion, batch, draw, dequantiser) for draw in range(draws)]
            # The error bar is that of so many examples, however often each is drawn.
            metric.update(torch.stack([log_prob.double() for log_prob, _ in found]).mean(0))
            for _, nfe in found:
                calls.update(nfe)
        discrete = data.data.levels is not None
        bits, error, _ = metric.compute()
        unit = 1.0 if discrete else math.log(2) * math.prod(data.data.shape)
        protocol: dict[str, object] = {
            "standard_error": float(error) * unit,
            "n": n,
            "split": "test" if occasion.final else "validation",
            "dequantisation": self.dequantised(occasion),
            "levels": data.data.levels,
            "draws": draws,
            "nfe": float(calls.compute()),
            **self.method(occasion, dequantiser),
            "seed": self.seed,
        }
        name = ("bits_per_dim" if discrete else "nll_nats") + self.name
        return {name: Measurement(float(bits) * unit, protocol, "less")}

    def examples(self, occasion: Occasion) -> tuple[int, Split]:
        """How many examples, and of which split."""
        split = occasion.data.test_split if occasion.final else occasion.data.validation_split
        wanted = self.n_final if occasion.final else self.n
        n = len(split) if wanted is None else min(wanted, len(split))
        return (min(n, 4) if occasion.trainer.fast_dev_run else n), split  # type: ignore[attr-defined]


class DensityEvaluator(LikelihoodEvaluator):
    """The same of a density.

    Images are dequantised here, so for them the number is an upper bound of the discrete bits per dimension; continuous
    data are reported in nats.

    Args:
        n: number of validation examples during training.
        n_final: number of test examples at the end; None takes them all.
        batch_size: examples at once; changes the speed only.
        draws: dequantisation draws per example at the end.
        dequantisation: of images at the end; during training it is uniform.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self,
        n: int,
        n_final: int | None,
        batch_size: int,
        draws: int,
        dequantisation: Dequantisation | None,
        seed: int,
        every: int,
    ) -> None:
        super().__init__(n, n_final, batch_size, draws, seed, every)
        self.dequantisation = UniformDequantisation() if dequantisation is None else dequantisation

    @abstractmethod
    def in_model_space(
        self, occasion: Occasion, y: Tensor, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, float | Tensor]:
        """log p(y) in model space or a bound of it, in nats, and the evaluations that each took; both (B,)."""

    def _dequantisation(self, occasion: Occasion) -> Dequantisation:
        return self.dequantisation if occasion.final else UniformDequantisation()

    def dequantised(self, occasion: Occasion) -> str:
        return "none" if occasion.data.data.levels is None else repr(self._dequantisation(occasion))

    def dequantiser(self, occasion: Occasion) -> Dequantiser | None:
        """The law of the dequantisation; None for continuous data. Every process fits the same."""
        data = occasion.data
        if data.data.levels is None:
            return None
        return self._dequantisation(occasion).dequantiser(
            occasion.model, data.data, data.train_split, occasion.given, self.seed, occasion.device
        )

    def log_prob(
        self, occasion: Occasion, indices: list[int], draw: int, dequantiser: Dequantiser | None
    ) -> tuple[Tensor, float | Tensor]:
        data, (_, split) = occasion.data.data, self.examples(occasion)
        examples = split[torch.tensor(indices, dtype=torch.long)].to(occasion.device)
        u = IndexedNoise(self.seed, f"dequantise/{draw}", indices)
        if dequantiser is None:
            x, log_q = data.continuous(examples.x, u), torch.zeros((), device=occasion.device)
        else:
            x, log_q = dequantiser(examples.x.to(torch.get_default_dtype()), u)
        noise = IndexedNoise(self.seed, f"probes/{draw}", indices)
        try:
            found, nfe = self.in_model_space(occasion, data.transform.forward(x), occasion.given(examples), noise)
        except NumericalError as error:
            where = f"examples {indices[0]} to {indices[-1]}, every {occasion.trainer.world_size}., of seed {self.seed}"
            raise error.within(where, x=x, indices=torch.tensor(indices)) from None
        return found + data.transform.log_abs_det(x) - log_q, nfe


class BitsPerDim(DensityEvaluator):
    """-log2 p(x) / d by the probability flow.

    Args:
        flow: the probability flow; its solver's tolerance and its divergence enter the record.
        n: number of validation examples during training.
        n_final: number of test examples at the end; None takes them all.
        batch_size: examples at once; changes the speed only.
        draws: dequantisation draws per example at the end.
        n_check: examples on which the solver's own error is measured at the end, by a tolerance 100 times tighter; 0
            for none.
        dequantisation: of images at the end; None is uniform.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    name = ""

    def __init__(
        self,
        flow: ProbabilityFlow,
        n: int = 64,
        n_final: int | None = None,
        batch_size: int = 256,
        draws: int = 1,
        n_check: int = 0,
        dequantisation: Dequantisation | None = None,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(n, n_final, batch_size, draws, dequantisation, seed, every)
        self.flow, self.n_check = flow, n_check

    def in_model_space(
        self, occasion: Occasion, y: Tensor, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, float | Tensor]:
        code = self.flow.encode(occasion.model, y, cond, noise)
        return occasion.model.schedule.prior_log_prob(code.z) + code.log_abs_det, code.nfe

    def method(self, occasion: Occasion, dequantiser: Dequantiser | None) -> dict[str, object]:
        found: dict[str, object] = {"flow": repr(self.flow), "t_min": self.flow.start(occasion.model)}
        if occasion.final and self.n_check:
            found |= self._solver_error(occasion, dequantiser) | self._truncation(occasion, dequantiser)
        return found

    def _change(self, occasion: Occasion, dequantiser: Dequantiser | None, flow: ProbabilityFlow) -> Tensor:
        """What another flow makes of log p of the first examples, in nats, (n_check,)."""
        indices = list(range(min(self.n_check, self.examples(occasion)[0])))
        other = copy(self)
        other.flow = flow
        here, there = (e.log_prob(occasion, indices, 0, dequantiser)[0].double() for e in (self, other))
        return there - here

    def _solver_error(self, occasion: Occasion, dequantiser: Dequantiser | None) -> dict[str, object]:
        """Difference that a tolerance 100 times tighter makes, in bits per dimension, on the first examples."""
        solver, dims = self.flow.solver, math.prod(occasion.data.data.shape)
        if not isinstance(solver, DormandPrince):
            return {}
        tight = replace(self.flow, solver=replace(solver, rtol=solver.rtol / 100, atol=solver.atol / 100))
        change = bits_per_dim(self._change(occasion, dequantiser, tight), dims)
        return {
            "solver_error": float(change.mean().abs()),
            "solver_error_max": float(change.abs().max()),
            "n_solver_error": len(change),
        }

    def _truncation(self, occasion: Occasion, dequantiser: Dequantiser | None) -> dict[str, object]:
        """Change of the number, in its own unit, where the flow starts at ten times the time; on the first examples."""
        later, data = 10 * self.flow.start(occasion.model), occasion.data.data
        if not 0 < later < occasion.model.schedule.t_max:
            return {}
        change = self._change(occasion, dequantiser, replace(self.flow, t_min=later))
        in_unit = -change if data.levels is None else bits_per_dim(change, math.prod(data.shape))
        return {"t_min_tenfold_change": float(in_unit.mean())}


class BitsPerDimBound(DensityEvaluator):
    """An upper bound of -log2 p(x) / d for the reverse SDE, without an ODE (Song et al. 2021b, theorem 3).

    Args:
        bound: the variational bound; its number of draws and its law of times enter the record.
        n: number of validation examples during training.
        n_final: number of test examples at the end; None takes them all.
        batch_size: examples at once; changes the speed only.
        draws: dequantisation draws per example at the end.
        dequantisation: of images at the end; None is uniform.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    name = "_bound"

    def __init__(
        self,
        bound: VariationalBound,
        n: int = 64,
        n_final: int | None = None,
        batch_size: int = 256,
        draws: int = 1,
        dequantisation: Dequantisation | None = None,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(n, n_final, batch_size, draws, dequantisation, seed, every)
        self.bound = bound

    def in_model_space(
        self, occasion: Occasion, y: Tensor, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, float | Tensor]:
        return -self.bound(occasion.model, y, cond, noise).nll, 2.0 * self.bound.draws

    def method(self, occasion: Occasion, dequantiser: Dequantiser | None) -> dict[str, object]:
        return {"bound": repr(self.bound), "t_min": occasion.model.schedule.t_min}


class BitsPerDimChain(LikelihoodEvaluator):
    """An upper bound of -log2 P(k) / d of the grey levels k themselves, by a discrete chain (Ho et al. 2020, eq. 5).

    Rate and distortion, in bits/dim, and the decoder's root mean squared error in grey levels enter the record (there,
    section 4.3).

    Args:
        chain: the bound; its steps, variances and number of draws enter the record.
        n: number of validation examples during training.
        n_final: number of test examples at the end; None takes them all.
        batch_size: examples at once; changes the speed only.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    name = "_chain"

    def __init__(
        self,
        chain: ChainBound,
        n: int = 64,
        n_final: int | None = None,
        batch_size: int = 100,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(n, n_final, batch_size, 1, seed, every)
        self.chain = chain

    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        dims = math.prod(occasion.data.data.shape)
        self._rate, self._distortion = (BitsPerDimMetric(dims).to(occasion.device) for _ in range(2))
        self._squared_error = MeanMetric().to(occasion.device)
        return super().evaluate(occasion)

    def log_prob(
        self, occasion: Occasion, indices: list[int], draw: int, dequantiser: Dequantiser | None
    ) -> tuple[Tensor, float | Tensor]:
        _, split = self.examples(occasion)
        examples = split[torch.tensor(indices, dtype=torch.long)].to(occasion.device)
        noise = IndexedNoise(self.seed, f"probes/{draw}", indices)
        code = self.chain(occasion.model, examples.x, occasion.data.data, occasion.given(examples), noise)
        self._rate.update(-code.rate)
        self._distortion.update(-code.distortion)
        self._squared_error.update(code.squared_error)
        return -code.nll, float(self.chain.calls(occasion.model.schedule))

    def method(self, occasion: Occasion, dequantiser: Dequantiser | None) -> dict[str, object]:
        return {
            "rate": float(self._rate.compute().mean),
            "distortion": float(self._distortion.compute().mean),
            "rmse": math.sqrt(float(self._squared_error.compute())),
            "chain": repr(self.chain),
            "steps": len(self.chain.times(occasion.model.schedule)),
        }
