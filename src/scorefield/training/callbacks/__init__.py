from scorefield.training.callbacks.agreement import Agreement
from scorefield.training.callbacks.chains import ChainReport
from scorefield.training.callbacks.checkpoint import Checkpoint
from scorefield.training.callbacks.class_accuracy import ClassAccuracy
from scorefield.training.callbacks.energy_gap import DivergedError, EnergyGapGuard
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.callbacks.fokker_planck import FokkerPlanckResidual
from scorefield.training.callbacks.guard import NonFiniteError, SkipNonFinite, StopOnNonFinite
from scorefield.training.callbacks.likelihood import BitsPerDim, BitsPerDimBound, BitsPerDimChain
from scorefield.training.callbacks.loss_by_noise import LossByNoise
from scorefield.training.callbacks.preemption import Preemption
from scorefield.training.callbacks.progress import TrainingLog
from scorefield.training.callbacks.quality import SampleQuality
from scorefield.training.callbacks.samples import SampleGrid
from scorefield.training.callbacks.stopwatch import Stopwatch
from scorefield.training.callbacks.truth import FisherDivergence, TotalVariation

__all__ = [
    "Agreement",
    "BitsPerDim",
    "BitsPerDimBound",
    "BitsPerDimChain",
    "ChainReport",
    "Checkpoint",
    "ClassAccuracy",
    "DivergedError",
    "EnergyGapGuard",
    "Evaluator",
    "FisherDivergence",
    "FokkerPlanckResidual",
    "LossByNoise",
    "NonFiniteError",
    "Occasion",
    "Preemption",
    "SampleGrid",
    "SampleQuality",
    "SkipNonFinite",
    "StopOnNonFinite",
    "Stopwatch",
    "TotalVariation",
    "TrainingLog",
]
