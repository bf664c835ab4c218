from scorefield.schedules.base import Schedule
from scorefield.schedules.rescaled import Exploding, Preserving
from scorefield.schedules.sde import VE, VP, SubVP
from scorefield.schedules.straight import EDM, Brownian, Constant, Linear
from scorefield.schedules.tabulated import Tabulated

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Brownian",
    "Constant",
    "Exploding",
    "Linear",
    "Preserving",
    "Schedule",
    "SubVP",
    "Tabulated",
]
