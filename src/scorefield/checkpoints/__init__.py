from scorefield.checkpoints.own import export
from scorefield.checkpoints.sources import from_state, load

__all__ = ["export", "from_state", "load"]
