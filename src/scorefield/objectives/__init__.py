from scorefield.objectives.base import Loss, Objective
from scorefield.objectives.contrastive import ContrastiveDivergence, PersistentContrastiveDivergence
from scorefield.objectives.cross_entropy import CrossEntropy
from scorefield.objectives.denoising import Denoising
from scorefield.objectives.fokker_planck import FokkerPlanck
from scorefield.objectives.implicit import Implicit, ObservedSure, OnPerturbed, Sliced, Sure
from scorefield.objectives.sum import Sum
from scorefield.objectives.weights import Likelihood, SigmaPower, Unit, Weight

__all__ = [
    "ContrastiveDivergence",
    "CrossEntropy",
    "Denoising",
    "FokkerPlanck",
    "Implicit",
    "Likelihood",
    "Loss",
    "Objective",
    "ObservedSure",
    "OnPerturbed",
    "PersistentContrastiveDivergence",
    "SigmaPower",
    "Sliced",
    "Sum",
    "Sure",
    "Unit",
    "Weight",
]
