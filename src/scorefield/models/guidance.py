"""Sampling a class more, or less, decidedly than the model learnt it: scores added to a model's own.

With p(c | x) to the power w, p(x | c) becomes p(x) p(c | x)^w up to a constant. At noise level t both guidances below
follow the score of p_t(x) p_t(c | x)^w. These densities are not the perturbed forms of the one at t = 0 unless w is 0
or 1, so that what comes out is not p(x) p(c | x)^w but another, usually more extreme density.
"""

import math

import torch
from torch import Tensor

from scorefield.models.base import Cond, ScoreModel
from scorefield.models.classifier import Classifier
from scorefield.noise import Noise
from scorefield.prediction import Prediction
from scorefield.tensors import per_sample


def without_class(label: Tensor) -> Tensor:
    """The same number of labels that say "no class": -1 for indices (B,), zeros for vectors (B, classes)."""
    return torch.full_like(label, -1) if label.ndim == 1 else torch.zeros_like(label)


def drop_labels(cond: Cond | None, rate: float, noise: Noise) -> Cond | None:
    """The conditions, each label replaced by "no class" with probability ``rate`` (Ho & Salimans 2022, algorithm 1).

    Args:
        cond: conditions; without labels, or at rate 0, they come back as they are and nothing is drawn.
        rate: in [0, 1).
        noise: decides which.
    """
    if cond is None or "label" not in cond or rate == 0:
        return cond
    label = cond["label"]
    dropped = noise.uniform_like(torch.empty(len(label), dtype=torch.float32, device=label.device)) < rate
    return {**cond, "label": torch.where(per_sample(dropped, label), without_class(label), label)}


def _label(cond: Cond | None, model: ScoreModel) -> Tensor:
    if cond is None or "label" not in cond:
        raise ValueError(
            f"{type(model).__name__} steers towards a class and was told none: pass cond={{'label': classes (B,)}}; "
            "-1 is no class"
        )
    return cond["label"]


class _Steered(ScoreModel):
    """What both guidances share: a model, a scale, and the noise levels at which the scale counts."""

    def __init__(self, model: ScoreModel, scale: float, low: float, high: float) -> None:
        super().__init__(model.schedule)
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale} must be finite; 1 is the conditional model, 0 the unconditional one")
        if not 0 <= low < high:
            raise ValueError(f"low={low} and high={high} must be noise levels sigma / alpha with 0 <= low < high")
        self.model = model
        self.scale, self.low, self.high = scale, low, high

    def _scales(self, t: Tensor, outside: float) -> Tensor:
        """The scale at each time, (B,)."""
        level = self.schedule.ratio(t)
        inside = (level >= self.low) & (level <= self.high)
        return torch.where(inside, self.scale, outside)


class Guided(_Steered):
    """Classifier-free guidance: score = s(x, t) + w (s(x, t | c) - s(x, t)) (Ho & Salimans 2022, section 3.2).

    Here w = 1 is the conditional model and w = 0 the unconditional one; the paper's own w is one less. Only levels of
    ``low`` <= sigma / alpha <= ``high`` are guided, the others are sampled at w = 1 (Kynkäänniemi et al. 2024). One
    call costs two of the network where w is not 1. Every prediction target is affine in the score, so the combination
    may be taken of the network's outputs.

    Args:
        model: told a class, or -1 for none, by ``cond["label"]``; trained with labels left out now and then.
        scale: w.
        low: smallest noise level sigma / alpha that is guided, >= 0.
        high: largest one.
    """

    def __init__(self, model: ScoreModel, scale: float = 1.0, low: float = 0.0, high: float = math.inf) -> None:
        super().__init__(model, scale, low, high)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        label = _label(cond, self)
        conditional = self.model(x, t, cond)
        scale = self._scales(t, outside=1.0)
        if bool((scale == 1).all()):
            return conditional
        free = self.model(x, t, {**(cond or {}), "label": without_class(label)})
        excess = per_sample((scale - 1).to(x), x) * (conditional.out - free.out)
        return Prediction(self.schedule, x, t, conditional.out + excess, conditional.target)


class ClassifierGuided(_Steered):
    """Classifier guidance: score = s(x, t) + w grad log p(c | x_t) (Dhariwal & Nichol 2021, section 4).

    Samples without a class, label -1, are not guided.

    Args:
        model: the model that is guided.
        classifier: knows p(c | x_t) at all noise levels of the model's schedule.
        scale: w.
        low: smallest noise level sigma / alpha that is guided, >= 0.
        high: largest one.
        conditional: whether the model is told the class as well.
    """

    def __init__(
        self,
        model: ScoreModel,
        classifier: ScoreModel,
        scale: float = 1.0,
        low: float = 0.0,
        high: float = math.inf,
        conditional: bool = False,
    ) -> None:
        super().__init__(model, scale, low, high)
        if not isinstance(classifier, Classifier):
            raise ValueError(
                f"classifier is a {type(classifier).__name__}; give a Classifier, as `model=classifier` trains one"
            )
        if repr(classifier.schedule) != repr(model.schedule):
            raise ValueError(
                f"the classifier was trained under {classifier.schedule} and the model under {model.schedule}; noise "
                "levels of the one mean nothing to the other"
            )
        self.classifier = classifier
        self.conditional = conditional

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        label = _label(cond, self)
        others = {name: value for name, value in (cond or {}).items() if self.conditional or name != "label"}
        prediction = self.model(x, t, others or None)
        known = label >= 0
        pull = self.classifier(x, t, {"label": label.clamp(min=0)}).score
        scale = torch.where(known, self._scales(t, outside=0.0), 0.0)
        return prediction.add_score(per_sample(scale.to(x), x) * pull)
