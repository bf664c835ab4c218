"""Energy-based models: a scalar network whose score is the negative gradient of its energy."""

import torch
from torch import Tensor, nn

from scorefield.models.base import Cond
from scorefield.models.density import DensityModel
from scorefield.models.parametrization import Parametrization
from scorefield.prediction import Prediction, Score, conversion
from scorefield.schedules import Schedule
from scorefield.tensors import event_sum


class EnergyModel(DensityModel):
    """E(x, t) = B(t) U(x, t) - A(t) |x|^2 / 2 with U = net(c_in x + shift, c_noise) / c_in and score = -grad_x E.

    The network's negative gradient F = -grad_x U takes the place of a vector network's output: it predicts the
    parametrisation's target, and score = A x + B F is that target's conversion to the score (A = 0, B = 1 where the
    target is the score itself). So every parametrisation serves energies as it serves vector fields, and the field is
    conservative by construction (Song & Ermon 2019; Salimans & Ho 2021, section 3).

    The constant Z(t) is unknown, and an output bias of the network would change nothing but Z: leave it away.

    Args:
        net: called as ``net(x, label)`` or, with classes, ``net(x, label, class_labels)``; returns (B,). Must be twice
            differentiable, since its gradient is what is trained.
        schedule: the schedule that perturbs the data.
        parametrization: target of the negative gradient, input scale and label.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, parametrization: Parametrization) -> None:
        super().__init__(schedule)
        self.net = net
        self.parametrization = parametrization

    def _potential(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """U(x, t), (B,), in the precision of x."""
        p, dtype = self.parametrization, next(self.net.parameters()).dtype
        label = p.label(self.schedule, t).to(dtype)
        classes = () if cond is None or "label" not in cond else (cond["label"],)
        value: Tensor = self.net(p.seen(x, self.schedule, t, dtype), label, *classes)
        if value.shape != t.shape:
            raise ValueError(
                f"the network of an EnergyModel returns one number per sample, shape {tuple(t.shape)}, but this "
                f"{type(self.net).__name__} returned {tuple(value.shape)}; use a scalar network such as EnergyMLP"
            )
        return (value / p.input_scale(self.schedule, t).to(dtype)).to(x.dtype)

    def _energy_of(self, potential: Tensor, x: Tensor, t: Tensor) -> Tensor:
        from_x, from_out = conversion(self.parametrization.target, Score(), self.schedule, t)
        return from_out.to(x) * potential - from_x.to(x) * event_sum(x.square()) / 2

    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self._energy_of(self._potential(x, t, cond), x, t)

    def with_energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Prediction]:
        """Energy (B,) and prediction from one forward and one backward pass.

        Works under `torch.no_grad` and `torch.inference_mode`; with gradients enabled the prediction can be
        differentiated with respect to weights and x.
        """
        differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode cannot enter a graph, copies of them can.
            at = x if x.requires_grad and differentiable else x.detach().clone().requires_grad_()
            time = t.clone() if t.is_inference() else t
            potential = self._potential(at, time, cond)
            (gradient,) = torch.autograd.grad(potential.sum(), at, create_graph=differentiable)
            energy = self._energy_of(potential, at, time)
        if not differentiable:
            energy, gradient = energy.detach(), gradient.detach()
        return energy, Prediction(self.schedule, x, t, -gradient, self.parametrization.target)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return self.with_energy(x, t, cond)[1]
