"""Whether Markov chains of the trained model mix, and what their draws are worth."""

import torch

from scorefield.kernels import Kernel, Mala, acceptance, run_chains
from scorefield.metrics.chains import effective_sample_size, r_hat
from scorefield.noise import IndexedNoise
from scorefield.records.result import Measurement
from scorefield.training.callbacks.evaluator import Evaluator, Occasion


class ChainReport(Evaluator):
    """R-hat, effective sample size and rate of acceptance of chains at t_min, at the end of a run.

    Chains start from the schedule's prior. Chain i depends on (seed, i) alone. The largest R-hat and the smallest
    effective sample size over the coordinates are reported; each coordinate's are in the record.

    Args:
        kernel: one step of the chain.
        chains: number of chains, >= 2.
        draws: draws kept of each chain, >= 4.
        burn_in: steps left out at the start.
        thin: steps from one kept draw to the next.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self,
        kernel: Kernel,
        chains: int = 8,
        draws: int = 500,
        burn_in: int = 500,
        thin: int = 1,
        seed: int = 0,
        every: int = 0,
    ) -> None:
        super().__init__(every)
        if chains < 2 or draws < 4:
            raise ValueError(f"chains={chains} must be at least 2 and draws={draws} at least 4 to be compared")
        if isinstance(kernel, Mala) and kernel.adapt > burn_in:
            raise ValueError(
                f"kernel.adapt={kernel.adapt} steps of adaptation are more than burn_in={burn_in}: the target is not "
                "invariant while the step size adapts, so these steps must not be counted"
            )
        self.kernel, self.chains, self.draws = kernel, chains, draws
        self.burn_in, self.thin, self.seed = burn_in, thin, seed

    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        schedule, data = occasion.model.schedule, occasion.data.data
        # Few short chains: every process runs them all, and has the same numbers without a word to the others.
        noise = IndexedNoise(self.seed, "chains", range(self.chains))
        start = schedule.prior_like(torch.empty(self.chains, *data.shape, device=occasion.device), noise)
        t = torch.full((self.chains,), schedule.t_min, dtype=torch.float64, device=occasion.device)
        cond = occasion.wanted([0] * self.chains)
        found = run_chains(self.kernel, occasion.model, start, t, self.draws, self.burn_in, self.thin, cond, noise)
        sizes, agreement = effective_sample_size(found.x), r_hat(found.x)
        protocol = {
            "kernel": repr(self.kernel),
            "chains": self.chains,
            "draws": self.draws,
            "burn_in": self.burn_in,
            "thin": self.thin,
            "nfe": found.nfe,
            "seed": self.seed,
        }
        measured = {
            "r_hat": Measurement(float(agreement.max()), {"each": agreement.tolist(), **protocol}, "less"),
            "effective_sample_size": Measurement(float(sizes.min()), {"each": sizes.tolist(), **protocol}, "more"),
        }
        if isinstance(self.kernel, Mala):
            rate = acceptance(self.kernel, found.state).cpu()
            measured["acceptance"] = Measurement(float(rate.mean()), {"lowest": float(rate.min()), **protocol})
        return measured
