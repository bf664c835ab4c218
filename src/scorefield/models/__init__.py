from scorefield.models.base import Cond, ScoreModel
from scorefield.models.classifier import Classifier
from scorefield.models.compute import Compute
from scorefield.models.density import DensityModel
from scorefield.models.energy import EnergyModel
from scorefield.models.exact_posterior import ExactPosterior, MixtureLaw
from scorefield.models.guidance import ClassifierGuided, Guided
from scorefield.models.mixture import MixtureModel
from scorefield.models.network import NetworkModel
from scorefield.models.parametrization import (
    ChainIndex,
    Fixed,
    LadderIndex,
    Log,
    LogRatio,
    NearestLevel,
    One,
    Parametrization,
    PerTime,
    Sigma,
    Time,
    UnitVariance,
    VPTime,
)
from scorefield.models.posterior import DPS, MomentMatching, NormalisedDPS, NullSpace, Observed, PiGDM

__all__ = [
    "DPS",
    "ChainIndex",
    "Classifier",
    "ClassifierGuided",
    "Compute",
    "Cond",
    "DensityModel",
    "EnergyModel",
    "ExactPosterior",
    "Fixed",
    "Guided",
    "LadderIndex",
    "Log",
    "LogRatio",
    "MixtureLaw",
    "MixtureModel",
    "MomentMatching",
    "NearestLevel",
    "NetworkModel",
    "NormalisedDPS",
    "NullSpace",
    "Observed",
    "One",
    "Parametrization",
    "PerTime",
    "PiGDM",
    "ScoreModel",
    "Sigma",
    "Time",
    "UnitVariance",
    "VPTime",
]
