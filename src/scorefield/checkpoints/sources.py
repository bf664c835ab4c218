"""The two ways in: a state dict with a configuration, or a file with a configuration."""

from torch import nn

from scorefield.checkpoints import edm, refinenet, score_sde
from scorefield.checkpoints.names import Settings, State, plain_state


def from_state(source: str, state: State, config) -> nn.Module:
    settings = Settings(config, source)
    return {"score_sde": score_sde, "edm": edm, "ncsn": refinenet, "ncsnv2": refinenet}[source].from_state(plain_state(state, source), settings)


def load():
    pass
