from scorefield.models.base import Cond, ScoreModel
from scorefield.models.classifier import Classifier
from scorefield.models.density import DensityModel
from scorefield.models.energy import EnergyModel
from scorefield.models.guidance import ClassifierGuided, Guided
from scorefield.models.mixture import MixtureModel
from scorefield.models.network import NetworkModel
from scorefield.models.parametrization import (
    ChainIndex,
    Fixed,
    LadderIndex,
    Log,
    LogRatio,
    One,
    Parametrization,
    PerTime,
    Sigma,
    Time,
    UnitVariance,
    VPTime,
)

__all__ = [
    "ChainIndex",
    "Classifier",
    "ClassifierGuided",
    "Cond",
    "DensityModel",
    "EnergyModel",
    "Fixed",
    "Guided",
    "LadderIndex",
    "Log",
    "LogRatio",
    "MixtureModel",
    "NetworkModel",
    "One",
    "Parametrization",
    "PerTime",
    "ScoreModel",
    "Sigma",
    "Time",
    "UnitVariance",
    "VPTime",
]
