import pytest
import torch

from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()


@pytest.fixture(autouse=True)
def _float32(_float64):
    """Runs are trained in the precision that the command line has."""
    torch.set_default_dtype(torch.float32)
