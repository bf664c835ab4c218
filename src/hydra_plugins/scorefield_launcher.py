"""Hydra takes launchers from the package hydra_plugins alone; this is the door to scorefield's own."""

from scorefield.cli.launcher import Launcher


class Processes(Launcher):
    """See `scorefield.cli.launcher.Launcher`."""
