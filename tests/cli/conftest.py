from copy import deepcopy

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()

COMPOSED: dict = {}  # by primary configuration and choices of files


@pytest.fixture(autouse=True)
def _float32(_float64):
    """Runs are trained in the precision that the command line has."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def remembered_composition(monkeypatch):
    """Hydra composes each choice of files of conf/ once; it is nine tenths of the time of a check."""
    load = ConfigLoaderImpl.load_configuration

    def remembered(self, config_name, overrides, *args, **kwargs):
        key = (config_name, *overrides)
        if key not in COMPOSED:
            COMPOSED[key] = load(self, config_name, overrides, *args, **kwargs)
        return deepcopy(COMPOSED[key])

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", remembered)
