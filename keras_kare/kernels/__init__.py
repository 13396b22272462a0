"""What K is: kernels that answer `gram`, `cross`, `diag` and `operator`."""

from keras_kare.kernels import second_derivatives as second_derivatives
from keras_kare.kernels.classic import (
    ArcCosine,
    Categorical,
    Gaussian,
    InfiniteWidth,
    Laplace,
    Matern,
    Polynomial,
)
from keras_kare.kernels.combined import Normalized, On, Product, Sum, Weighted
from keras_kare.kernels.factors import Factor, FullFactor, LookupFactor, OuterFactor
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.ntk import NTK
from keras_kare.kernels.of_networks import Conjugate, Deep
from keras_kare.kernels.operator import DenseOperator, FeatureOperator, KernelOperator
from keras_kare.kernels.structured import LayerRule, register_rule

__all__ = [
    "NTK",
    "ArcCosine",
    "Categorical",
    "Conjugate",
    "Deep",
    "Gaussian",
    "InfiniteWidth",
    "Laplace",
    "Matern",
    "Normalized",
    "On",
    "Polynomial",
    "Product",
    "Sum",
    "Weighted",
    "DenseOperator",
    "Factor",
    "FeatureOperator",
    "FullFactor",
    "Kernel",
    "KernelOperator",
    "LayerRule",
    "LookupFactor",
    "OuterFactor",
    "register_rule",
]
