"""Training a classifier of perturbed samples."""

from torch import Tensor

from scorefield.models import Classifier, Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.objectives.base import Loss, Objective
from scorefield.times import TimeLaw, Uniform


class CrossEntropy(Objective):
    """-log p(c | x_t) of the class of each example, at random times (Dhariwal & Nichol 2021, section 4).

    Args:
        times: law of the training times; its importance weight multiplies the loss.
    """

    def __init__(self, times: TimeLaw | None = None) -> None:
        super().__init__()
        self.times = Uniform() if times is None else times

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        if not isinstance(model, Classifier):
            raise TypeError(f"CrossEntropy trains a Classifier, not a {type(model).__name__}; use model=classifier")
        t, importance = self.times.sample(len(x), model.schedule, noise, x.device)
        x_t = model.schedule.perturb(x, t, noise.normal_like(x))
        loss = model.energy(x_t, t, cond)
        return Loss(importance.to(x.dtype) * loss, t, {"cross_entropy": loss.detach()})
