"""Bits per dimension on held-out data, by the probability flow."""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from scorefield.data import Split
from scorefield.errors import NumericalError
from scorefield.metrics.bits_per_dim import BitsPerDim as BitsPerDimMetric
from scorefield.noise import IndexedNoise
from scorefield.ode import DormandPrince
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.result import Measurement
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.datamodule import shard


class BitsPerDim(Evaluator):
    """-log2 p(x) / d of the validation split during training and of the test split at the end.

    Images are dequantised uniformly here (Theis et al. 2016), so for them the number is an upper bound of the discrete
    bits per dimension; continuous data are reported in nats. The likelihood of example i depends on (seed, i) alone.

    Args:
        flow: the probability flow; its solver's tolerance and its divergence enter the record.
        n: number of validation examples during training.
        n_final: number of test examples at the end; None takes them all.
        batch_size: examples at once; changes the speed only.
        draws: dequantisation draws per example at the end.
        n_check: examples on which the solver's own error is measured at the end, by a tolerance 100 times tighter; 0
            for none.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self,
        flow: ProbabilityFlow,
        n: int = 64,
        n_final: int | None = None,
        batch_size: int = 256,
        draws: int = 1,
        n_check: int = 0,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1")
        self.flow, self.seed, self.draws, self.n_check = flow, seed, draws, n_check
        self.n, self.n_final, self.batch_size = n, n_final, batch_size

    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        data = occasion.data
        split = data.test_split if occasion.final else data.validation_split
        wanted = self.n_final if occasion.final else self.n
        n = len(split) if wanted is None else min(wanted, len(split))
        if occasion.trainer.fast_dev_run:  # type: ignore[attr-defined]
            n = min(n, 4)
        draws = self.draws if occasion.final else 1
        metric = BitsPerDimMetric(math.prod(data.data.shape)).to(occasion.device)
        calls = MeanMetric().to(occasion.device)
        for draw in range(draws):
            for batch in shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size):
                log_prob, nfe = self.log_prob(occasion, split, batch, draw, self.flow)
                metric.update(log_prob)
                calls.update(nfe)
        discrete = data.data.levels is not None
        bits, error, _ = metric.compute()
        scale = 1.0 if discrete else math.log(2) * math.prod(data.data.shape)
        protocol: dict[str, object] = {
            "standard_error": float(error) * scale,
            "n": n,
            "split": "test" if occasion.final else "validation",
            "dequantisation": "uniform" if discrete else "none",
            "levels": data.data.levels,
            "draws": draws,
            "nfe": float(calls.compute()),
            "flow": repr(self.flow),
            "t_min": self.flow.start(occasion.model),
            "seed": self.seed,
        }
        if occasion.final and self.n_check:
            protocol |= self._solver_error(occasion, split, min(self.n_check, n))
            protocol |= self._truncation(occasion, split, min(self.n_check, n), scale)
        name = "bits_per_dim" if discrete else "nll_nats"
        return {name: Measurement(float(bits) * scale, protocol, "less")}

    def log_prob(
        self, occasion: Occasion, split: Split, indices: list[int], draw: int, flow: ProbabilityFlow
    ) -> tuple[Tensor, Tensor]:
        """log p of examples in data space, in nats, and the evaluations that each took; both (B,)."""
        data = occasion.data.data
        examples = split[torch.tensor(indices, dtype=torch.long)].to(occasion.device)
        x = data.continuous(examples.x, IndexedNoise(self.seed, f"dequantise/{draw}", indices))
        probes = IndexedNoise(self.seed, f"probes/{draw}", indices)
        try:
            code = flow.encode(occasion.model, data.transform.forward(x), occasion.given(examples), probes)
        except NumericalError as error:
            where = f"examples {indices[0]} to {indices[-1]}, every {occasion.trainer.world_size}., of seed {self.seed}"
            raise error.within(where, x=x, indices=torch.tensor(indices)) from None
        log_prob = occasion.model.schedule.prior_log_prob(code.z) + code.log_abs_det
        return log_prob + data.transform.log_abs_det(x), code.nfe

    def _solver_error(self, occasion: Occasion, split: Split, n: int) -> dict[str, object]:
        """Difference that a tolerance 100 times tighter makes, in bits per dimension, on the first examples."""
        solver = self.flow.solver
        if not isinstance(solver, DormandPrince):
            return {}
        tight = replace(self.flow, solver=replace(solver, rtol=solver.rtol / 100, atol=solver.atol / 100))
        indices = list(range(n))
        bits = math.log(2) * math.prod(occasion.data.data.shape)
        coarse, fine = (self.log_prob(occasion, split, indices, 0, flow)[0].double() for flow in (self.flow, tight))
        difference = (coarse - fine) / bits
        return {
            "solver_error": float(difference.mean().abs()),
            "solver_error_max": float(difference.abs().max()),
            "n_solver_error": len(indices),
        }

    def _truncation(self, occasion: Occasion, split: Split, n: int, scale: float) -> dict[str, object]:
        """Change of the number, in its own unit, where the flow starts at ten times the time; on the first examples."""
        later = 10 * self.flow.start(occasion.model)
        if not 0 < later < occasion.model.schedule.t_max:
            return {}
        indices = list(range(n))
        bits = math.log(2) * math.prod(occasion.data.data.shape)
        flows = (self.flow, replace(self.flow, t_min=later))
        here, there = (self.log_prob(occasion, split, indices, 0, flow)[0].double() for flow in flows)
        return {"t_min_tenfold_change": float((here - there).mean()) / bits * scale}
