from scorefield.models.base import Cond, ScoreModel
from scorefield.models.mixture import MixtureModel
from scorefield.models.network import NetworkModel
from scorefield.models.parametrization import LogRatio, One, Parametrization, PerTime, Sigma, Time, UnitVariance

__all__ = [
    "Cond",
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
]
