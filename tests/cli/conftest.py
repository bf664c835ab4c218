import shutil

import pytest
import torch

from scorefield.cli.train import execute
from scorefield.records.rundir import RunDir
from tests.cli.checkpointed import tiny


@pytest.fixture(autouse=True)
def _float32(_float64):
    """Runs are trained in the precision that the command line has."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with checkpoints at 2, 4 and 6."""
    torch.set_num_threads(1)  # as in every test; sums in another order would be other weights
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    execute(tiny(run.path), run)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """The same run, killed before its result was written."""
    shutil.copytree(finished.path, tmp_path / "run")
    copy = RunDir(tmp_path / "run")
    copy.result.unlink()
    return copy
