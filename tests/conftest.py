"""Ground truths shared by the laws: every schedule, mixtures known in closed form, reference numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefield.models import MixtureModel
from scorefield.schedules import EDM, VE, VP, Brownian, Linear, Schedule, SubVP, Tabulated

SHARED = Path(__file__).parents[1].parent / "shared"

# alpha(t_max) of Linear is kept at 0.05 where laws divide by it many times over.
SCHEDULES: dict[str, Schedule] = {
    "ve": VE(0.01, 50.0),
    "vp": VP(0.1, 20.0),
    "subvp": SubVP(0.1, 20.0),
    "linear": Linear(1e-3, 0.99),
    "edm": EDM(0.002, 80.0),
    "brownian": Brownian(0.02**2, 100.0**2),
    "tabulated": Tabulated.ddpm(np.linspace(1e-3, 0.1, 50).tolist()),
}
CONTINUOUS = {name: schedule for name, schedule in SCHEDULES.items() if name != "tabulated"}

MIXTURE = {
    "weights": [0.3, 0.7],
    "means": [[-0.6, 0.4], [0.5, -0.3]],
    "variances": [[0.04, 0.09], [0.16, 0.02]],
}


# Small networks run fastest on one thread, and sums in another order would not be equal bit for bit. Set once, before
# any fixture runs.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _float64():
    """Laws are checked in float64 unless they say otherwise."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request) -> Schedule:
    return request.param


@pytest.fixture(params=CONTINUOUS.values(), ids=CONTINUOUS.keys())
def continuous(request) -> Schedule:
    """Schedules whose scales are smooth in time."""
    return request.param


@pytest.fixture
def mixture(continuous) -> MixtureModel:
    return MixtureModel(continuous, **MIXTURE)


def inside(schedule: Schedule, n: int = 33) -> torch.Tensor:
    """Times spread over the levels of a schedule, end points excluded."""
    ends = torch.tensor([schedule.t_min, schedule.t_max])
    low, high = schedule.ratio(ends).log()
    return schedule.time_at(torch.linspace(float(low), float(high), n + 2).exp())[1:-1]


class Recorded:
    """One file of reference numbers: arrays by name, and the manifest that says what they are."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.arrays = np.load(folder / f"{topic}.npz")
        self.manifest = json.loads((folder / f"{topic}.json").read_text())

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))


@pytest.fixture
def recorded():
    """Opens recorded reference numbers by topic; skips where they are absent."""
    folder = SHARED / "parity" / "sde"
    if not folder.is_dir():
        pytest.skip(f"reference numbers are not at {folder}")
    return lambda topic: Recorded(folder, topic)
