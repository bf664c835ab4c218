"""Maximum likelihood of an energy-based model by Markov chains.

    grad_theta log p_theta(x) = -grad E_theta(x) + E_{p_theta} grad E_theta

The second expectation needs samples of the model. Contrastive divergence replaces them by the end of k steps of a
chain started at the data (Hinton 2002), which is biased towards zero for small k; persistent chains go on from where
the last update left them (Tieleman 2008; Du & Mordatch 2019).
"""

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.kernels.langevin import Langevin, TemperedLangevin
from scorefield.kernels.metropolis import Mala, acceptance
from scorefield.models.base import Cond, ScoreModel
from scorefield.models.density import DensityModel
from scorefield.noise import Noise
from scorefield.objectives.base import Loss, Objective
from scorefield.schedules import Constant
from scorefield.tensors import per_sample
from scorefield.times import TimeLaw, Uniform


class ContrastiveDivergence(Objective):
    """E(x_t) - E(y) + penalty (E(x_t)^2 + E(y)^2), y the end of k chain steps from x_t.

    Its gradient, without the penalty, is minus the estimated gradient of the log-likelihood; its value is the energy
    gap, which hovers around zero in a healthy run and runs away in a diverging one.

    Args:
        kernel: one step of the chain; it leaves p_t invariant, or nearly.
        k: steps of the chain, >= 1.
        penalty: weight of the squared energies, >= 0, which holds their level and scale.
        times: law of the noise levels at which data and chains are perturbed.
    """

    def __init__(self, kernel: Kernel, k: int = 10, penalty: float = 0.0, times: TimeLaw | None = None) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k={k} is the number of chain steps and must be at least 1")
        if penalty < 0:
            raise ValueError(f"penalty={penalty} must not be negative")
        self.kernel, self.k, self.penalty = kernel, k, penalty
        self.times = Uniform() if times is None else times

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """The loss of each sample x (B, *event).

        Raises:
            TypeError: if the model has no density.
        """
        if not isinstance(model, DensityModel):
            raise TypeError(
                f"contrastive divergence trains an energy, and a {type(model).__name__} has a score only; use "
                "model=energy, or a score matching objective"
            )
        t, importance = self.times.sample(len(x), model.schedule, noise, x.device)
        x_t = model.schedule.perturb(x, t, noise.normal_like(x))
        chains, state = self.negatives(model, x_t, t, noise, cond)
        positive, negative = model.energy(x_t, t, cond), model.energy(chains, t, cond)
        gap = positive - negative
        penalty = self.penalty * (positive.square() + negative.square())
        log = {"energy_gap": gap.detach(), "energy_data": positive.detach(), "energy_chains": negative.detach()}
        return Loss(importance.to(x.dtype) * (gap + penalty), t, log | self._told(chains, state))

    @torch.no_grad()
    def negatives(
        self, model: DensityModel, x: Tensor, t: Tensor, noise: Noise, cond: Cond | None
    ) -> tuple[Tensor, State]:
        """Samples of the model for the gradient's second term, (B, *event), and the kernel's last state."""
        state = self.kernel.init(x)
        for _ in range(self.k):
            x, state = self.kernel.step(model, x, t, t, state, noise, cond)
        return x, state

    def _told(self, chains: Tensor, state: State) -> dict[str, Tensor]:
        """What the kernel says of itself, for each sample."""
        told = {}
        if isinstance(self.kernel, Langevin | TemperedLangevin):
            told["temperature"] = chains.new_full((len(chains),), self.kernel.temperature)
        if isinstance(self.kernel, Mala):
            told["acceptance"] = acceptance(self.kernel, state).to(chains)
        return told


class PersistentContrastiveDivergence(ContrastiveDivergence):
    """`ContrastiveDivergence` whose chains go on from a buffer of their former ends (Tieleman 2008).

    Each batch takes as many chains from the buffer as it has samples, moves them k steps and puts them back; a
    fraction of them starts anew from the schedule's prior (Du & Mordatch 2019, section 3.2). Each process has a buffer
    of its own, which is saved with the others' in every checkpoint. A chain belongs to one noise level: the schedule is
    `Constant`.

    Args:
        kernel: one step of the chain.
        k: steps of the chain for each batch, >= 1.
        penalty: weight of the squared energies, >= 0.
        chains: chains in the buffer of each process, at least as many as its share of a batch has samples.
        restart: probability that a chain starts anew, in [0, 1].
    """

    def __init__(
        self, kernel: Kernel, k: int = 10, penalty: float = 0.0, chains: int = 10_000, restart: float = 0.05
    ) -> None:
        super().__init__(kernel, k, penalty)
        if chains < 1:
            raise ValueError(f"chains={chains} must be at least 1")
        if not 0 <= restart <= 1:
            raise ValueError(f"restart={restart} is a probability and must be in [0, 1]")
        self.size, self.restart = chains, restart
        # Not a registered buffer: distributed training would overwrite every process's chains with the first one's.
        self.buffer: Tensor | None = None

    @torch.no_grad()
    def negatives(
        self, model: DensityModel, x: Tensor, t: Tensor, noise: Noise, cond: Cond | None
    ) -> tuple[Tensor, State]:
        """Move chains of the buffer and put them back.

        Raises:
            ValueError: if the chains would not stay with one density: several noise levels, or classes; or if the
                buffer has fewer chains than the batch samples.
        """
        self._require_one_density(model, cond)
        if len(x) > self.size:
            raise ValueError(f"chains={self.size} in the buffer are fewer than the {len(x)} samples of a batch")
        if self.buffer is None:
            self.buffer = model.schedule.prior_like(x.new_empty(self.size, *x.shape[1:]), noise)
        self.buffer = self.buffer.to(x)
        taken = noise.uniform_like(x.new_empty(self.size, 1))[:, 0].argsort()[: len(x)]
        fresh = noise.uniform_like(x.new_empty(len(x), 1))[:, 0] < self.restart
        starts = torch.where(per_sample(fresh, x), model.schedule.prior_like(x, noise), self.buffer[taken])
        ends, state = super().negatives(model, starts, t, noise, cond)
        self.buffer[taken] = ends
        return ends, state

    def _require_one_density(self, model: DensityModel, cond: Cond | None) -> None:
        if not isinstance(model.schedule, Constant):
            raise ValueError(
                f"a persistent chain belongs to one noise level, but {model.schedule} has many; use schedule=clean or "
                "constant, or ContrastiveDivergence without persistence"
            )
        if cond is not None:
            raise ValueError("a persistent chain belongs to one class; train without classes, or without persistence")

    def process_state(self) -> dict[str, Tensor]:
        return {} if self.buffer is None else {"buffer": self.buffer}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        self.buffer = state["buffer"].clone() if "buffer" in state else None  # chains move in place
