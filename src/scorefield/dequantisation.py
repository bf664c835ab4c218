"""How integer levels k become the continuous x = k + u that a density can be asked about.

For every law q(u | k) on [0, 1)^d, the probability of the levels is bounded by Jensen's inequality (Theis et al. 2016,
section 3.1; Ho et al. 2019, eq. 11):

    ln P(k) = ln int p(k + u) du >= E_q [ln p(k + u) - ln q(u | k)].

The uniform law has ln q = 0. A law that is fitted to the model closes part of the gap; the model stays as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield.data import Data, Split
from scorefield.data.transforms import dequantise
from scorefield.errors import NumericalError
from scorefield.models import Cond, ScoreModel
from scorefield.nets.coupling import ConditionalCouplings
from scorefield.noise import Noise, StreamNoise
from scorefield.variational import VariationalBound

# Levels k (B, *event) of floating type and a source of noise -> k + u like k, and ln q(u | k) in nats, (B,).
Dequantiser = Callable[[Tensor, Noise], tuple[Tensor, Tensor]]


class Dequantisation(ABC):
    """A law of u given k, or the recipe by which one is fitted."""

    @abstractmethod
    def dequantiser(
        self,
        model: ScoreModel,
        data: Data,
        split: Split,
        given: Callable[[Split], Cond | None],
        seed: int,
        device: torch.device,
    ) -> Dequantiser:
        """The law for this model.

        Args:
            model: the model whose likelihood is to be bounded.
            data: the data set, of integer levels.
            split: training examples, anywhere.
            given: conditions of examples.
            seed: of everything random about a fit.
            device: the model's device.
        """


def _uniform(levels: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    return dequantise(levels, noise.uniform_like(levels)), levels.new_zeros(len(levels))


@dataclass(frozen=True)
class UniformDequantisation(Dequantisation):
    """u uniform on [0, 1)^d (Theis et al. 2016, section 3.1)."""

    def dequantiser(
        self,
        model: ScoreModel,
        data: Data,
        split: Split,
        given: Callable[[Split], Cond | None],
        seed: int,
        device: torch.device,
    ) -> Dequantiser:
        return _uniform


class FlowDequantiser(torch.nn.Module):
    """u = sigmoid(T_k(logit v)) with v uniform: where T_k is the identity, u is uniform.

    Args:
        couplings: T.
        data: the data set, which says what levels are in model space.
    """

    def __init__(self, couplings: ConditionalCouplings, data: Data) -> None:
        super().__init__()
        self.couplings, self.data = couplings, data

    def forward(self, levels: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        tiny = torch.finfo(levels.dtype).eps
        base = torch.logit(noise.uniform_like(levels).clamp(tiny, 1 - tiny))
        y, log_det = self.couplings(base, self.data.transform.forward(levels + 0.5))
        log_q = (_log_slope(base) - _log_slope(y)).flatten(1).sum(1) - log_det
        return dequantise(levels, torch.sigmoid(y)), log_q


def _log_slope(y: Tensor) -> Tensor:
    """ln of the derivative of the logistic function at y."""
    return F.logsigmoid(y) + F.logsigmoid(-y)


@dataclass(frozen=True)
class VariationalDequantisation(Dequantisation):
    """q is a conditional flow (Ho et al. 2019, section 3.1), fitted to the model's variational bound by Adam.

    The model stays as it is; the fit takes 4 ``steps`` ``batch_size`` network calls with a backward pass through each.

    Args:
        steps: steps of the fit, >= 1.
        batch_size: training examples in each.
        lr: learning rate, > 0, which falls to 0 along half a cosine.
        width: channels of the flow's networks.
        couplings: number of couplings, even.
    """

    steps: int = 400
    batch_size: int = 64
    lr: float = 2e-3
    width: int = 32
    couplings: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")

    def dequantiser(
        self,
        model: ScoreModel,
        data: Data,
        split: Split,
        given: Callable[[Split], Cond | None],
        seed: int,
        device: torch.device,
    ) -> Dequantiser:
        """See `Dequantisation`.

        Raises:
            NumericalError: if the fit meets a number that is not finite.
        """
        noise = StreamNoise(seed, "fit of the dequantisation")
        with torch.random.fork_rng(devices=[]):  # initial weights by the seed, and nobody else's draws moved
            torch.manual_seed(noise.seed % 2**32)
            couplings = ConditionalCouplings(data.shape, self.width, self.couplings)
        flow = FlowDequantiser(couplings, data).to(device)
        parameters = list(flow.parameters())
        optimizer = torch.optim.Adam(parameters, self.lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        bound = VariationalBound(draws=2)
        rows = [i for _ in range(self._epochs(len(split))) for i in noise.permutation(len(split)).tolist()]
        for step in range(self.steps):
            examples = split[torch.tensor(rows[step * self.batch_size : (step + 1) * self.batch_size])].to(device)
            with torch.enable_grad():
                x, log_q = flow(examples.x.to(torch.get_default_dtype()), noise)
                nll = bound.estimate(model, data.transform.forward(x), given(examples), noise).nll
                loss = (nll + log_q).mean()
                gradients = torch.autograd.grad(loss, parameters)
            if not torch.isfinite(loss):
                raise NumericalError(
                    f"the fit of the dequantisation is not finite in step {step + 1}; take a smaller lr than {self.lr}",
                    x=x,
                )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            decay.step()
        return flow.eval().requires_grad_(False)

    def _epochs(self, examples: int) -> int:
        """Passes over the examples that the steps take, the last one in part."""
        return -(-self.steps * self.batch_size // examples)
