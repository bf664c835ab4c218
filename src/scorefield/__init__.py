"""scorefield: score-based generative models, every number verified, every piece replaceable."""

__version__ = "0.1.0"
