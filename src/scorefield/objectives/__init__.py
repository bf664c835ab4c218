from scorefield.objectives.base import Loss, Objective
from scorefield.objectives.contrastive import ContrastiveDivergence, PersistentContrastiveDivergence
from scorefield.objectives.denoising import Denoising
from scorefield.objectives.implicit import Implicit, ObservedSure, OnPerturbed, Sliced, Sure
from scorefield.objectives.weights import Likelihood, SigmaPower, Unit, Weight

__all__ = [
    "ContrastiveDivergence",
    "Denoising",
    "Implicit",
    "Likelihood",
    "Loss",
    "Objective",
    "ObservedSure",
    "OnPerturbed",
    "PersistentContrastiveDivergence",
    "SigmaPower",
    "Sliced",
    "Sure",
    "Unit",
    "Weight",
]
