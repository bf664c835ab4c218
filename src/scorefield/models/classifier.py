"""A classifier of perturbed samples, seen as a density model: its energy is -log p(c | x_t)."""

from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.jacobian import gradient
from scorefield.models.base import Cond
from scorefield.models.density import DensityModel
from scorefield.models.parametrization import Parametrization
from scorefield.prediction import Prediction, Score
from scorefield.schedules import Schedule


class Classifier(DensityModel):
    """p(c | x_t) = softmax(net(c_in x, c_noise))_c; its score is grad_x log p(c | x_t) for the class that it is told.

    So it is trained, averaged, stored and loaded like any other model, and guides one (`ClassifierGuided`). It is no
    model of the data: nothing is sampled from it.

    Args:
        net: called as ``net(x, label)`` with the noise label; returns logits (B, classes).
        schedule: the schedule that perturbs the data.
        parametrization: input scale and label; its target is not used.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, parametrization: Parametrization) -> None:
        super().__init__(schedule)
        self.net = net
        self.parametrization = parametrization

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes), in the precision of x: x (B, *event), t (B,)."""
        p, dtype = self.parametrization, next(self.net.parameters()).dtype
        value: Tensor = self.net(p.seen(x, self.schedule, t, dtype), p.label(self.schedule, t).to(dtype))
        if value.ndim != 2 or len(value) != len(x):
            raise ValueError(
                f"the network of a Classifier returns logits (B, classes), but this {type(self.net).__name__} returned "
                f"{tuple(value.shape)} for {len(x)} samples; use a network such as ClassifierConv"
            )
        return value.to(x.dtype)

    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """-log p(c | x_t) in nats, (B,), for the classes c of ``cond["label"]`` (B,)."""
        if cond is None or "label" not in cond:
            raise ValueError("a Classifier answers for a class and was told none: pass cond={'label': classes (B,)}")
        return F.cross_entropy(self.logits(x, t), cond["label"], reduction="none")

    def with_energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Prediction]:
        """-log p(c | x_t) (B,) and the prediction of its negative gradient, from one forward and one backward pass."""

        def at(y: Tensor) -> Tensor:  # copies, since tensors made in inference mode cannot enter a graph
            return self.energy(y, t.clone(), {name: value.clone() for name, value in (cond or {}).items()})

        energy, slope = gradient(at, x)
        return energy, Prediction(self.schedule, x, t, -slope, Score())

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return self.with_energy(x, t, cond)[1]
