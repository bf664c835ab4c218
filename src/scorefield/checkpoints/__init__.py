from scorefield.checkpoints.sources import from_state, load

__all__ = ["from_state", "load"]
