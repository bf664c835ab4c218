"""The truth of every linear inverse problem whose prior is a Gaussian mixture."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.jacobian import gradient
from scorefield.models.base import Cond, ScoreModel, observed
from scorefield.models.mixture import MixtureModel
from scorefield.operators import LinearOperator
from scorefield.prediction import Prediction, Score


@dataclass(frozen=True)
class MixtureLaw:
    """Gaussian mixtures with full covariances, one for each of B observations.

    Args:
        weights: (B, K).
        means: (B, K, d).
        covariances: (B, K, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (B, d) and covariance (B, d, d)."""
        mean = torch.einsum("bk,bki->bi", self.weights, self.means)
        spread = self.means - mean[:, None]
        between = torch.einsum("bk,bki,bkj->bij", self.weights, spread, spread)
        return mean, torch.einsum("bk,bkij->bij", self.weights, self.covariances) + between


class ExactPosterior(ScoreModel):
    """p(x | y) of a mixture for y = A x + std n, at every noise level: again a mixture.

    Given component k and x_t, x is N(m_k, V_k) and y is N(A m_k, A V_k A^T + std^2 I). All in float64.

    Args:
        mixture: the prior.
        operator: A.
        std: standard deviation of the observation's noise, > 0, or 0 where A V_k A^T alone is regular.
    """

    def __init__(self, mixture: MixtureModel, operator: LinearOperator, std: float) -> None:
        super().__init__(mixture.schedule)
        self.mixture, self.std = mixture, std
        self.operator = operator

    def _evidence(self, y: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log N(y; A m_k, S_k) (B, K), the residuals (B, K, m), S_k (B, K, m, m) and A V_k (B, K, m, d)."""
        matrix = self.operator.matrix().to(means)
        carried = matrix * variances[..., None, :]
        spread = carried @ matrix.T + self.std**2 * torch.eye(len(matrix)).to(means)
        residual = y.flatten(1).to(means)[:, None] - means @ matrix.T
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(residual), spread)
        return normal.log_prob(residual), residual, spread, carried

    def law(self, y: Tensor) -> MixtureLaw:
        """The posterior of clean x for observations y (B, *observed)."""
        prior = self.mixture
        means, variances = (value.expand(len(y), *value.shape) for value in (prior.means, prior.variances))
        evidence, residual, spread, carried = self._evidence(y, means, variances)
        gain = torch.linalg.solve(spread, carried).mT  # V A^T S^-1
        return MixtureLaw(
            torch.softmax(prior.weights.log() + evidence, 1),
            means + (gain @ residual[..., None])[..., 0],
            torch.diag_embed(variances) - gain @ carried,
        )

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        y, prior = observed(cond, x), self.mixture
        t64 = t.to(torch.float64)
        alpha, sigma_sq = prior.schedule.alpha(t64)[:, None, None], prior.schedule.sigma(t64).square()[:, None, None]
        total = alpha.square() * prior.variances + sigma_sq

        def log_density(x_t: Tensor) -> Tensor:
            flat = x_t.flatten(1).to(torch.float64)[:, None]
            means = (alpha * prior.variances * flat + sigma_sq * prior.means) / total
            joint, _, _ = prior._components(x_t, t)
            return torch.logsumexp(joint + self._evidence(y, means, sigma_sq * prior.variances / total)[0], 1)

        return Prediction(self.schedule, x, t, gradient(log_density, x)[1].to(x.dtype), Score())
