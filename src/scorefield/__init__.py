"""scorefield: score-based generative models, every number verified, every piece replaceable."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    """`load_run` on first use: it needs the configuration framework, which the mathematics does not."""
    if name == "load_run":
        from scorefield.cli.runs import load_run

        return load_run
    raise AttributeError(f"module 'scorefield' has no attribute {name!r}")
