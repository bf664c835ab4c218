from scorefield.nets.adm import ADM
from scorefield.nets.classifier import ClassifierConv, ClassifierMLP
from scorefield.nets.ddpm import DDPM
from scorefield.nets.embeddings import Fourier, LabelEmbedding, Sinusoidal
from scorefield.nets.energy import EnergyConv, EnergyMLP
from scorefield.nets.mlp import MLP
from scorefield.nets.ncsnpp import InputCat, InputResidual, InputSum, NCSNpp, OutputResidual, OutputSkip
from scorefield.nets.noise_features import GaussianFourier, NoiseFeatures, Positional
from scorefield.nets.refinenet import NCSN, NCSNv2
from scorefield.nets.resampling import Box, CentredBox, Fir, Resampling, TransposedFir
from scorefield.nets.unet import UNet

__all__ = [
    "ADM",
    "DDPM",
    "MLP",
    "NCSN",
    "Box",
    "CentredBox",
    "ClassifierConv",
    "ClassifierMLP",
    "EnergyConv",
    "EnergyMLP",
    "Fir",
    "Fourier",
    "GaussianFourier",
    "InputCat",
    "InputResidual",
    "InputSum",
    "LabelEmbedding",
    "NCSNpp",
    "NCSNv2",
    "NoiseFeatures",
    "OutputResidual",
    "OutputSkip",
    "Positional",
    "Resampling",
    "Sinusoidal",
    "TransposedFir",
    "UNet",
]
