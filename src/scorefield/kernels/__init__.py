from scorefield.kernels.base import Kernel, State, Stay
from scorefield.kernels.chains import Draws, run_chains
from scorefield.kernels.deterministic import Euler, Heun
from scorefield.kernels.langevin import (
    BatchSignalToNoise,
    FixedStep,
    Langevin,
    SigmaStep,
    SignalToNoise,
    StepSize,
    TemperedLangevin,
)
from scorefield.kernels.metropolis import Mala, acceptance
from scorefield.kernels.multistep import DPMSolver2M, DPMSolver3M, UniPC
from scorefield.kernels.reverse_sde import Ancestral, Consistent, EulerMaruyama, ReverseDiffusion
from scorefield.kernels.singlestep import DPMSolver2, DPMSolver3

__all__ = [
    "Ancestral",
    "BatchSignalToNoise",
    "Consistent",
    "DPMSolver2",
    "DPMSolver2M",
    "DPMSolver3",
    "DPMSolver3M",
    "Draws",
    "Euler",
    "EulerMaruyama",
    "FixedStep",
    "Heun",
    "Kernel",
    "Langevin",
    "Mala",
    "ReverseDiffusion",
    "SigmaStep",
    "SignalToNoise",
    "State",
    "Stay",
    "StepSize",
    "TemperedLangevin",
    "UniPC",
    "acceptance",
    "run_chains",
]
