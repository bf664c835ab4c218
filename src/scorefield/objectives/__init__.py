from scorefield.objectives.base import Loss, Objective
from scorefield.objectives.denoising import Denoising
from scorefield.objectives.weights import Likelihood, SigmaPower, Unit, Weight

__all__ = ["Denoising", "Likelihood", "Loss", "Objective", "SigmaPower", "Unit", "Weight"]
