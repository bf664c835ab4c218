from scorefield.nets.embeddings import Fourier, LabelEmbedding, Sinusoidal
from scorefield.nets.mlp import MLP
from scorefield.nets.unet import UNet

__all__ = ["MLP", "Fourier", "LabelEmbedding", "Sinusoidal", "UNet"]
