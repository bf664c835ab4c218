from scorefield.models.base import Cond, ScoreModel
from scorefield.models.density import DensityModel
from scorefield.models.energy import EnergyModel
from scorefield.models.mixture import MixtureModel
from scorefield.models.network import NetworkModel
from scorefield.models.parametrization import Index, LogRatio, One, Parametrization, PerTime, Sigma, Time, UnitVariance

__all__ = [
    "Cond",
    "DensityModel",
    "EnergyModel",
    "Index",
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
