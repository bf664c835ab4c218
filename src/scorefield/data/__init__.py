from scorefield.data.arrays import ArrayImages, ImageFolder
from scorefield.data.base import Data, Split
from scorefield.data.images import CIFAR10, MNIST, Digits, FashionMNIST
from scorefield.data.photographs import LSUN, CelebA
from scorefield.data.toys import Checkerboard, Mixture, Rings, SwissRoll, TwoMoons
from scorefield.data.transforms import Affine, Compose, Identity, Transform

__all__ = [
    "CIFAR10",
    "LSUN",
    "MNIST",
    "Affine",
    "ArrayImages",
    "CelebA",
    "Checkerboard",
    "Compose",
    "Data",
    "Digits",
    "FashionMNIST",
    "Identity",
    "ImageFolder",
    "Mixture",
    "Rings",
    "Split",
    "SwissRoll",
    "Transform",
    "TwoMoons",
]
