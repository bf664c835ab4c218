from scorefield.nets.embeddings import Fourier, LabelEmbedding, Sinusoidal
from scorefield.nets.energy import EnergyConv, EnergyMLP
from scorefield.nets.mlp import MLP
from scorefield.nets.unet import UNet

__all__ = ["MLP", "EnergyConv", "EnergyMLP", "Fourier", "LabelEmbedding", "Sinusoidal", "UNet"]
