"""Langevin dynamics with a Metropolis test: it leaves its target exactly invariant, at any step size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.kernels.langevin import StepSize
from scorefield.models.base import Cond, ScoreModel
from scorefield.models.density import DensityModel
from scorefield.noise import Noise
from scorefield.tensors import event_sum, per_sample


@dataclass(frozen=True)
class Mala(Kernel):
    """Metropolis-adjusted Langevin dynamics (Roberts & Tweedie 1996; Roberts & Rosenthal 1998).

    y = x + epsilon s(x) + sqrt(2 epsilon) z is accepted with probability min(1, p(y) q(x | y) / (p(x) q(y | x))), where
    q(y | x) = N(y; x + epsilon s(x), 2 epsilon I); otherwise the chain stays at x. Needs a model with a density.

    During the first ``adapt`` steps each chain adapts its own step size to the wanted rate of acceptance,

        ln epsilon <- ln epsilon + n^(-3/5) (a - target),

    a the probability of acceptance in step n (Andrieu & Thoms 2008, algorithm 4). Only after these steps is the target
    invariant: adaptation is for the burn-in.

    Args:
        step_size: the rule for epsilon; one that does not follow the chain's state.
        target: wanted rate of acceptance, in (0, 1); 0.574 is the optimum in many dimensions.
        adapt: number of steps in which the step size is adapted, >= 0.
    """

    step_size: StepSize
    target: float = 0.574
    adapt: int = 0

    # Score and energy at x and at y: both are asked anew, since between two steps the state may have been moved.
    calls = 2

    def __post_init__(self) -> None:
        if self.step_size.follows_state:
            raise ValueError(
                f"step_size={self.step_size} depends on the chain's state, so the step back has another size and the "
                "Metropolis test does not hold; use FixedStep or SigmaStep"
            )
        if not 0 < self.target < 1:
            raise ValueError(f"target={self.target} is a rate of acceptance and must be in (0, 1)")
        if self.adapt < 0:
            raise ValueError(f"adapt={self.adapt} must not be negative")

    def init(self, x: Tensor, grid: Tensor | None = None) -> State:
        """Per chain: steps made, log of the factor on the step size, and the sum of the acceptance probabilities.

        The sum leaves out the steps of the adaptation.
        """
        zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return {"steps": zero, "log_factor": zero, "accepted": zero}

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        """Move x at times t.

        Raises:
            TypeError: if the model has no density.
        """
        if not isinstance(model, DensityModel):
            raise TypeError(
                f"Mala needs the energy of the model, and a {type(model).__name__} has a score only; use Langevin, or "
                "an EnergyModel"
            )
        z = noise.normal_like(x)
        energy, prediction = model.with_energy(x, t, cond)
        score = prediction.score
        rule = self.step_size(model.schedule, t, score, z).double() * state["log_factor"].exp()
        epsilon = per_sample(rule.to(x), x)
        y = x + epsilon * score + (2 * epsilon).sqrt() * z
        energy_y, prediction_y = model.with_energy(y, t, cond)
        # ln q(x | y) - ln q(y | x); the way forth is z itself, which keeps it accurate for small steps.
        back = event_sum(((x - y - epsilon * prediction_y.score).square()) / (4 * epsilon))
        log_ratio = energy - energy_y - back + event_sum(z.square()) / 2
        probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0)  # a proposal of infinite energy is refused
        level = noise.uniform_like(x.new_empty(len(x), 1))[:, 0]
        moved = torch.where(per_sample(level < probability, x), y, x)
        return moved, self._adapted(state, probability.double())

    def _adapted(self, state: State, probability: Tensor) -> State:
        steps = state["steps"] + 1
        burn_in = steps <= self.adapt
        change = torch.where(burn_in, steps**-0.6 * (probability - self.target), 0.0)
        return {
            "steps": steps,
            "log_factor": state["log_factor"] + change,
            "accepted": state["accepted"] + torch.where(burn_in, 0.0, probability),
        }


def acceptance(kernel: Mala, state: State) -> Tensor:
    """Mean probability of acceptance of each chain since its adaptation ended, (B,); nan before its first such step."""
    return state["accepted"] / (state["steps"] - kernel.adapt).clamp(min=0)
