from scorefield.schedules.base import Schedule
from scorefield.schedules.sde import VE, VP, SubVP
from scorefield.schedules.straight import EDM, Constant, Linear
from scorefield.schedules.tabulated import Tabulated

__all__ = ["EDM", "VE", "VP", "Constant", "Linear", "Schedule", "SubVP", "Tabulated"]
