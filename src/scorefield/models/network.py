"""A network with its schedule and parametrisation."""

import torch
from torch import Tensor, nn

from scorefield.data.transforms import Transform
from scorefield.models.base import Cond, ScoreModel
from scorefield.models.compute import Compute
from scorefield.models.parametrization import Parametrization
from scorefield.prediction import Prediction
from scorefield.schedules import Schedule


class NetworkModel(ScoreModel):
    """out = net(c_in x_t + shift, c_noise, class label, augmentation).

    The state x may be wider than the network's parameters (float64 sampling through a float32 network): the input is
    cast down and the output cast back.

    Args:
        net: called as ``net(x, label)``, with classes as ``net(x, label, class_labels)``, with images that were
            augmented as ``net(x, label, class_labels or None, augment_labels)``; returns a tensor like x.
        schedule: the schedule that perturbs the data.
        parametrization: target, input scale and label.
        transform: from data to the space of x, for a model that comes without its data set; nothing here reads it.
        compute: how the network's calls are carried out; None leaves them as they are.

    Raises:
        ValueError: a setting of ``compute`` means nothing for this network.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        parametrization: Parametrization,
        transform: Transform | None = None,
        compute: Compute | None = None,
    ) -> None:
        super().__init__(schedule)
        self.net = net
        self.parametrization = parametrization
        self.transform = transform
        self.compute = Compute() if compute is None else compute
        self.compute.prepare(net)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's parameters."""
        return next(self.net.parameters()).dtype

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        p, dtype = self.parametrization, self.dtype
        _, label = p.told(self.schedule, t, dtype)
        told = [] if cond is None else [cond.get("label"), cond.get("augment_labels")]
        while told and told[-1] is None:  # what is not told needs no place in the call, nor in the network
            told.pop()
        out = self.compute.call(self.net, p.seen(x, self.schedule, t, dtype), label, *told)
        return Prediction(self.schedule, x, t, out.to(x.dtype), p.target)
