"""Kernels that are a formula of rows of numbers, with few variables."""

from keras_kare.kernels.classic.arc_cosine import ArcCosine
from keras_kare.kernels.classic.categorical import Categorical
from keras_kare.kernels.classic.gaussian import Gaussian
from keras_kare.kernels.classic.infinite_width import InfiniteWidth
from keras_kare.kernels.classic.laplace import Laplace
from keras_kare.kernels.classic.matern import Matern
from keras_kare.kernels.classic.polynomial import Polynomial

__all__ = [
    "ArcCosine",
    "Categorical",
    "Gaussian",
    "InfiniteWidth",
    "Laplace",
    "Matern",
    "Polynomial",
]
