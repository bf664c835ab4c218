from scorefield.data.arrays import ArrayImages
from scorefield.data.base import Data, Split
from scorefield.data.images import CIFAR10, MNIST, Digits, FashionMNIST
from scorefield.data.toys import Checkerboard, Mixture, Rings, SwissRoll, TwoMoons
from scorefield.data.transforms import Affine, Compose, Identity, Transform

__all__ = [
    "CIFAR10",
    "MNIST",
    "Affine",
    "ArrayImages",
    "Checkerboard",
    "Compose",
    "Data",
    "Digits",
    "FashionMNIST",
    "Identity",
    "Mixture",
    "Rings",
    "Split",
    "SwissRoll",
    "Transform",
    "TwoMoons",
]
