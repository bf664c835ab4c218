"""The exact truth: a Gaussian mixture, known in closed form at every noise level."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.models.base import Cond
from scorefield.models.density import DensityModel
from scorefield.noise import Noise
from scorefield.prediction import Prediction, Score
from scorefield.schedules import Schedule


class MixtureModel(DensityModel):
    """sum_k w_k N(mu_k, diag(v_k)), perturbed: x_t ~ sum_k w_k N(alpha mu_k, diag(alpha^2 v_k + sigma^2)).

    Density, score, posterior responsibilities and samples are exact at every time, so every sampler and likelihood can
    be held against it. All sums are done in float64, whatever the precision of x. Told a class, ``cond["label"]`` (B,),
    it is the mixture of that class's components alone; label -1 means no class.

    Args:
        schedule: the schedule that perturbs the data.
        weights: w_k > 0, summing to 1; length K.
        means: mu_k, (K, *event) or (K, d) with d the number of dimensions of the event.
        variances: v_k >= 0, shaped like ``means``, or (K,) for isotropic components.
        classes: class of each component, length K; None makes each component a class of its own.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    classes: Tensor

    def __init__(
        self,
        schedule: Schedule,
        weights: Sequence[float] | Tensor,
        means: Sequence[Sequence[float]] | Tensor,
        variances: Sequence[Sequence[float]] | Sequence[float] | Tensor,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(schedule)
        w, mu, v = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, variances))
        mu = mu.flatten(1) if mu.ndim > 1 else mu[:, None]
        v = v[:, None].expand_as(mu) if v.ndim == 1 else v.flatten(1)
        if not len(w) == len(mu) == len(v) or mu.shape != v.shape:
            raise ValueError(
                f"weights, means and variances must agree in the number of components and dimensions, got shapes "
                f"{tuple(w.shape)}, {tuple(mu.shape)}, {tuple(v.shape)}"
            )
        if not (w > 0).all() or abs(float(w.sum()) - 1) > 1e-6:
            raise ValueError(f"weights={w.tolist()} must be positive and sum to 1")
        if not (v >= 0).all():
            raise ValueError("variances must not be negative")
        of_class = torch.arange(len(w)) if classes is None else torch.as_tensor(classes)
        if of_class.shape != w.shape:
            raise ValueError(f"classes={classes} must name a class for each of the {len(w)} components")
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("means", mu)
        self.register_buffer("variances", v.contiguous())
        self.register_buffer("classes", of_class)

    def _log_weights(self, cond: Cond | None) -> Tensor:
        """log w_k, or that of the components of each sample's class alone, (K,) or (B, K)."""
        if cond is None or "label" not in cond:
            return self.weights.log()
        label = cond["label"][:, None]
        belongs = (self.classes == label) | (label == -1)
        if not belongs.any(1).all():
            unknown = int(label[~belongs.any(1)][0])
            raise ValueError(f"label {unknown} is no class of this mixture; it has {self.classes.unique().tolist()}")
        return torch.where(belongs, self.weights.log(), -torch.inf).log_softmax(1)

    def _components(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Joint log-density of x and component (B, K), residuals and variances (B, K, d) at the given times."""
        t64 = t.to(torch.float64)
        alpha, sigma = self.schedule.alpha(t64)[:, None, None], self.schedule.sigma(t64)[:, None, None]
        variance = alpha.square() * self.variances + sigma.square()
        residual = x.flatten(1).to(torch.float64)[:, None] - alpha * self.means
        log_normal = -0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        return log_normal + self._log_weights(cond), residual, variance

    def log_prob(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """log p_t(x), in nats: x (B, *event), t (B,) -> (B,)."""
        return torch.logsumexp(self._components(x, t, cond)[0], 1).to(x.dtype)

    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """-log p_t(x): the constant is known here."""
        return -self.log_prob(x, t, cond)

    def responsibilities(self, x: Tensor, t: Tensor) -> Tensor:
        """Posterior probability of each component given x at time t, (B, K)."""
        return torch.softmax(self._components(x, t)[0], 1).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        joint, residual, variance = self._components(x, t, cond)
        score = -(torch.softmax(joint, 1)[..., None] * residual / variance).sum(1)
        return Prediction(self.schedule, x, t, score.reshape(x.shape).to(x.dtype), Score())

    def sample_like(self, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """Exact samples of p_t, shaped like ``x`` (B, *event), at times t (B,)."""
        level = noise.uniform_like(torch.empty(len(x), 1, dtype=torch.float64, device=x.device))
        component = torch.searchsorted(self.weights.cumsum(0), level[:, 0]).clamp(max=len(self.weights) - 1)
        eps = noise.normal_like(torch.empty(x.shape, dtype=torch.float64, device=x.device)).flatten(1)
        clean = self.means[component] + self.variances[component].sqrt() * eps
        perturbation = noise.normal_like(torch.empty_like(clean))
        return self.schedule.perturb(clean, t.to(clean), perturbation).reshape(x.shape).to(x.dtype)

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of p_t."""
        time = torch.tensor([t], dtype=torch.float64, device=self.means.device)
        alpha, sigma = float(self.schedule.alpha(time)), float(self.schedule.sigma(time))
        mean = self.weights @ self.means
        spread = self.means - mean
        within = torch.diag(self.weights @ self.variances)
        covariance = within + (spread * self.weights[:, None]).T @ spread
        identity = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        return alpha * mean, alpha**2 * covariance + sigma**2 * identity
