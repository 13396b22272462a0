"""Per-example gradients of a group of variables, in whatever form is cheap."""

from keras_kare.kernels.factors.factor import Cost, Factor, length
from keras_kare.kernels.factors.full import FullFactor
from keras_kare.kernels.factors.layout import Layout, positions
from keras_kare.kernels.factors.lookup import LookupFactor
from keras_kare.kernels.factors.outer import OuterFactor
from keras_kare.kernels.factors.products import cross_of, gram_of
from keras_kare.kernels.factors.window import WindowFactor
from keras_kare.kernels.factors.windows import Windows

__all__ = [
    "Cost",
    "Factor",
    "FullFactor",
    "Layout",
    "LookupFactor",
    "OuterFactor",
    "WindowFactor",
    "Windows",
    "cross_of",
    "gram_of",
    "length",
    "positions",
]
